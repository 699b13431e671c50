r"""Which hyperparameters suit a model: an editor with several settings on validation facts.

    python benchmarks/settings_search.py --model smollm2-135m-gguf --facts validation-2000.jsonl \
        --corpus wiki.train.tokens --set learning_rate=0.1,0.5 clamp_factor=0.75,1.5

Each combination of the values is one setting; all others are the editor's defaults for the model.
Facts for choosing settings are never those that are reported. Second moments are collected once, z
are reused where a setting does not touch them, and what is done is not done again: interrupt it and
go on with the same ``--work``.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
import yaml

import editbench as eb
from editbench.datasets.facts import Facts

METRICS = {"ES": "efficacy_success", "PS": "paraphrase_success", "NS": "neighborhood_success"}


def read_grid(assignments: list[str]) -> list[dict[str, Any]]:
    """All combinations of ``field=value,value`` with values in YAML; `;` separates lists."""
    axes = []
    for assignment in assignments:
        field, _, values = assignment.partition("=")
        parts = values.split(";" if ";" in values or "[" in values else ",")
        axes.append([(field, yaml.safe_load(value)) for value in parts])
    return [dict(combination) for combination in itertools.product(*axes)]


def try_settings(
    model: Any, facts: list[dict[str, object]], setting: dict[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """Write the facts with one setting, and ask for them."""
    cache = args.work / "cache"
    edit = eb.edit(
        model, facts, args.editor, config=setting, corpus=args.corpus, cache=cache, seed=args.seed
    )
    table = eb.evaluate(model, edit, facts, metrics=["success"], cache=cache)
    extra = edit.card.extra
    row = {"setting": setting, "n": len(facts), "seed": args.seed}
    for editor, mark in (("unedited", "unedited_"), (edit.card.editor, "")):
        values = table[table.editor == editor].set_index("metric").value
        row |= {f"{mark}{short}": round(values[name], 1) for short, name in METRICS.items()}
    statuses = [fact["status"] for fact in extra.get("facts", [])]
    return {
        **row,
        "steps": extra.get("target_steps"),
        "loss": extra.get("target_loss"),
        "clamped": statuses.count("clamped"),
    }


def main() -> None:
    """Try all settings, and write what came of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0, help="place of the first fact")
    parser.add_argument("--n-edits", type=int, default=100)
    parser.add_argument("--editor", default="memit")
    parser.add_argument("--corpus")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUES", dest="grid")
    parser.add_argument("--work", type=Path, default=Path("runs/settings_search"))
    parser.add_argument("--out", type=Path, help="JSON file that rows are added to")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = eb.load_model(args.model)
    chosen = Facts(args.facts, None).cases()[args.first :]
    known = {case.request.case_id for case in chosen[: args.n_edits]}
    lines = args.facts.read_text(encoding="utf-8").splitlines()
    facts = [fact for fact in map(json.loads, lines) if fact["case_id"] in known]
    out = args.out or args.work / f"{args.model}.json"
    rows = json.loads(out.read_text()) if out.exists() else []
    for setting in read_grid(args.grid):
        asked = {"model": args.model, "editor": args.editor, "first": args.first}
        identity = {**asked, "setting": setting, "n": len(facts), "seed": args.seed}
        identity["corpus"] = args.corpus and Path(args.corpus).name
        if any(identity.items() <= row.items() for row in rows):
            continue
        row = {**identity, **try_settings(model, facts, setting, args)}
        print(json.dumps(row), flush=True)
        rows.append(row)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
