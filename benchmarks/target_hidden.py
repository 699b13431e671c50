"""Benchmark: z of a batch of edits by suffix replay, against one edit at a time.

    python benchmarks/target_hidden.py --work ../shared/reference/speed --out RESULT.json

`--work` is a folder with `model/` (a configuration and a tokenizer; weights are made with a seed),
`requests.json`, `context_templates.json` and `hparams.json`. Both sides run in turns in one
process; the ratio of the medians is what counts, since these machines are noisy.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from one_at_a_time import optimize_one
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from editbench.editors.base import report_nothing
from editbench.editors.memit import MemitConfig
from editbench.editors.parts.target_cache import TargetCache
from editbench.editors.parts.target_hidden import optimize_target_hidden
from editbench.models.editable import EditableModel
from editbench.requests import EditRequest


def read_work(
    folder: Path,
) -> tuple[EditableModel, list[EditRequest], tuple[str, ...], MemitConfig]:
    """Make the model and read the requests, prefixes and hyperparameters."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder / "model")
    network = AutoModelForCausalLM.from_config(config).float()
    model = EditableModel(network, AutoTokenizer.from_pretrained(folder / "model"), name="speed")
    records = json.loads((folder / "requests.json").read_text())
    requests = [
        EditRequest(
            str(record["case_id"]),
            record["requested_rewrite"]["subject"],
            record["requested_rewrite"]["prompt"],
            record["requested_rewrite"]["target_new"]["str"],
        )
        for record in records
    ]
    groups = json.loads((folder / "context_templates.json").read_text())
    prefixes = tuple(text.removesuffix("{}") for group in groups for text in group)
    used = json.loads((folder / "hparams.json").read_text())
    return (
        model,
        requests,
        prefixes,
        MemitConfig(
            critical_layers=used["layers"],
            preservation_weight=used["mom2_update_weight"],
            n_steps=used["v_num_grad_steps"],
            learning_rate=used["v_lr"],
            clamp_factor=used["clamp_norm_factor"],
            offset_decay=used["v_weight_decay"],
            kl_weight=used["kl_factor"],
        ),
    )


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run both sides in turns."""
    torch.set_num_threads(args.threads)
    model, requests, prefixes, config = read_work(args.work)
    some = list(range(0, len(requests), max(1, len(requests) // args.n_slow)))
    slow, fast, worst = [], [], 0.0
    for _ in range(args.repeats):
        began = time.perf_counter()
        plain = [optimize_one(model, requests[index], config, prefixes) for index in some]
        slow.append((time.perf_counter() - began) / len(some))
        began = time.perf_counter()
        replayed = optimize_target_hidden(
            model,
            requests,
            layer=config.critical_layers[-1],
            settings=config,
            prefixes=prefixes,
            cache=TargetCache(None),
            report_progress=report_nothing,
            token_budget=args.token_budget,
        )
        fast.append((time.perf_counter() - began) / len(requests))
        for one, other in zip(plain, replayed.states[some], strict=True):
            worst = max(worst, float((one - other).norm() / one.norm()))
    return {
        "benchmark": "target_hidden",
        "n_edits": len(requests),
        "n_edits_one_at_a_time": len(some),
        "threads": args.threads,
        "torch": torch.__version__,
        "seconds_per_edit_one_at_a_time": statistics.median(slow),
        "seconds_per_edit_replay": statistics.median(fast),
        "ratio": statistics.median(slow) / statistics.median(fast),
        "worst_relative_difference_of_z": worst,
        "mean_steps": float(replayed.n_steps.double().mean()),
    }


def main() -> None:
    """Parse the command line, measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("../shared/reference/speed"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--n-slow", type=int, default=8, help="edits of the slow side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--token-budget", type=int, help="suffix tokens replayed together")
    result = measure(parser.parse_args())
    for name, value in result.items():
        print(f"{name:36} {value}")
    if (out := parser.parse_args().out) is not None:
        out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
