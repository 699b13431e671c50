"""Try a small model of every kind that transformers has, and write what came of it as a table.

python docs/reference/architectures/make_table.py docs/reference/architectures.md
"""

import argparse
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from small_models import kinds, small_config, small_model
from trial import Outcome, try_model

_COMMAND = "python docs/reference/architectures/make_table.py docs/reference/architectures.md"
_RESULTS: Mapping[str, str] = {
    "replayed": "works",
    "whole forwards": "works, z by whole forwards",
    "refused": "refused",
    "broken": "BROKEN",
    "not made": "not tried",
}
_MOST_PARAMETERS = 2e7


def main() -> int:
    """Write the table; the exit status says whether anything is broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, nargs="?", help="where the table goes")
    parser.add_argument(
        "--only", nargs="+", default=[], help="names of rows to try; all by default"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    hf.logging.set_verbosity_error()
    rows = []
    for name, outcome in try_all(args.only):
        sys.stderr.write(f"{name:<30} {_RESULTS[outcome.result]} {outcome.reason}\n")
        rows.append((name, outcome))
    if args.path is not None:
        args.path.write_text("\n".join(describe(rows)) + "\n")
    return int(any(outcome.result == "broken" for _, outcome in rows))


def try_all(only: Sequence[str] = ()) -> Iterator[tuple[str, Outcome]]:
    """Names of rows, and what came of them."""
    for name, kind, own in kinds():
        if not only or name in only:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield name, _try(kind, own)


def _try(kind: str, own: Mapping[str, Any]) -> Outcome:
    try:
        config = small_config(kind, own)
        with torch.device("meta"):
            outline = hf.AutoModelForCausalLM.from_config(config)
        n_parameters = sum(parameter.numel() for parameter in outline.parameters())
        if n_parameters > _MOST_PARAMETERS:
            return Outcome("not made", f"its smallest has {n_parameters / 1e6:.0f} M parameters")
        network = small_model(config)
    except Exception as error:  # whatever a configuration finds wrong with itself
        return Outcome("not made", " ".join(str(error).split()))
    return try_model(network)


def describe(rows: Sequence[tuple[str, Outcome]]) -> Iterator[str]:
    """The page."""
    counts = Counter(outcome.result for _, outcome in rows)
    n_works = counts["replayed"] + counts["whole forwards"]
    yield "# Architectures"
    yield ""
    yield (
        f"Of {len(rows)} kinds and variants of causal language models in transformers "
        f"{hf.__version__}, {n_works} are edited and asked exactly, "
        f"{counts['refused']} are refused in one line, "
        f"{counts['broken']} are broken, and {counts['not made']} were not tried."
    )
    yield ""
    yield (
        "Each is a small random model, on which is compared with plain forwards (one row, no "
        "padding, no cache): scores, also behind a shared prompt; greedy texts; keys of ordinary "
        "text; logits with offsets; keys and states while weights change; MEMIT's and ROME's "
        "updates with replay and without; and the weights after an edit was taken off. *z by whole "
        "forwards* is as exact, and slower."
    )
    yield ""
    yield f"    {_COMMAND}"
    yield ""
    yield "| kind | | why |"
    yield "|---|---|---|"
    for name, outcome in rows:
        yield f"| `{name}` | {_RESULTS[outcome.result]} | {_shorten(outcome)} |"


def _shorten(outcome: Outcome) -> str:
    reason = outcome.reason.removeprefix("unsupported model: ").removeprefix("suffix replay: ")
    return re.sub(r"\s+", " ", reason).replace("|", "\\|").replace("_", "\\_").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
