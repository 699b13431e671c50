"""What searches for settings tried, and what came of it: records of `editbench tune` as one file.

    editbench tune --model smollm2-135m-gguf --dataset facts=validation.jsonl --out memit.yaml
    python benchmarks/settings_record.py memit.search --out benchmarks/results/settings/smollm2.json

Of each trial that is what was drawn, and the means of what was measured then.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import optuna


def read_search(folder: Path) -> dict[str, Any]:
    """The command, what was searched for, and of each trial what it drew and what it came to."""
    manifest = json.loads((folder / "search.json").read_text(encoding="utf-8"))
    study = optuna.load_study(study_name="tune", storage=f"sqlite:///{folder / 'trials.sqlite'}")
    return {
        "command": " ".join(["editbench", *manifest["command"][1:]]),
        "about": manifest["about"],
        "trials": [
            {
                "drawn": trial.user_attrs["drawn"],
                "state": trial.state.name.lower(),
                "value": trial.value,
                "measured": trial.user_attrs.get("measured"),
                "seconds": round(trial.user_attrs["seconds"], 1),
            }
            for trial in study.trials
            if "seconds" in trial.user_attrs
        ],
    }


def main() -> None:
    """Write the records of searches into one file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("searches", type=Path, nargs="+", help="folders that end in .search")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    searches = [read_search(folder) for folder in args.searches]
    args.out.write_text(json.dumps(searches, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
