"""Print the oldest versions that both packages say they work with, as constraints for pip.

python .ci/lower_bounds.py > oldest.txt
"""

import re
import tomllib
from pathlib import Path

_BOUND = re.compile(r"([A-Za-z0-9_.-]+)>=([0-9.]+)")


def main() -> None:
    """Take the strictest bound of each requirement, of the packages and of their extras."""
    bounds: dict[str, tuple[int, ...]] = {}
    for path in sorted(Path(__file__).parents[1].glob("packages/*/pyproject.toml")):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        extras = project.get("optional-dependencies", {}).values()
        for requirement in [*project["dependencies"], *(each for of in extras for each in of)]:
            if found := _BOUND.match(requirement):
                version = tuple(map(int, found[2].split(".")))
                bounds[found[1]] = max(version, bounds.get(found[1], ()))
    for name, version in sorted(bounds.items()):
        print(f"{name}=={'.'.join(map(str, version))}.*")  # noqa: T201  # it is for pip


if __name__ == "__main__":
    main()
