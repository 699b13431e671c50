"""Benchmark: what an edit takes in each form in which it can be served, and how true that is.

    python benchmarks/serving.py --threads 1 --out benchmarks/results/serving.json

MEMIT writes facts into the embedded model and, where it is installed, into a real one that comes as
a GGUF file. The edits are written in every form, read back, and asked; nothing is timed.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from side_by_side import make_parser, record

import editbench as eb
from editbench.datasets.facts import read_facts
from editbench.edits.adapter_export import export_adapter
from editbench.edits.export import export_edit
from editbench.edits.exported import Export
from editbench.edits.gguf_export import export_gguf_adapter
from editbench.edits.weight_edit import WeightEdit
from editbench.models.editable import EditableModel
from editbench.models.loading import DTypeName
from editbench.plugins.atlas import AtlasDataset
from editbench.plugins.sources import default_cache
from editbench.requests import EditRequest

REAL_FACTS = Path(__file__).parents[1] / "docs" / "examples" / "real-facts.jsonl"
MODELS = ("atlas", "smollm2-135m-gguf")


def load(name: str, dtype: DTypeName) -> EditableModel:
    """Load a model on the CPU."""
    return eb.load_model(name, dtype=dtype, device="cpu")


def facts_for(name: str, n_edits: int) -> list[EditRequest]:
    """Facts that are not what the model knows."""
    atlas = AtlasDataset(None, default_cache())
    cases = atlas.cases() if name == "atlas" else read_facts(REAL_FACTS)
    return [case.request for case in cases[:n_edits]]


def forms_of(model: EditableModel) -> dict[str, tuple[str, Callable[..., Export]]]:
    """What a model's edits can be written as: by name, the ending and what writes it."""
    if model.gguf is None:
        return {"folder": ("", export_edit), "peft adapter": ("", export_adapter)}
    return {
        "GGUF file": (".gguf", export_edit),
        "llama.cpp's LoRA file": (".gguf", export_gguf_adapter),
        "peft adapter": ("", export_adapter),
    }


def measure(name: str, n_edits: int, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each form."""
    model = load(name, "float32")
    facts = facts_for(name, n_edits)
    edit = eb.edit(model, facts)
    assert isinstance(edit, WeightEdit)
    edit.save(folder / "edit.safetensors")
    base = model.gguf.path.stat().st_size if model.gguf is not None else None
    for form, (ending, export) in forms_of(model).items():
        out = folder / f"{form.split()[0]}{ending}"
        written = export(edit, name, out, load=load, facts=facts)
        yield {
            "form": form,
            "model": f"{name}, {len(facts)} facts",
            "n_bytes": _size(out),
            "n_bytes_base": base,
            "n_bytes_edit": (folder / "edit.safetensors").stat().st_size,
            "lost": written.errors.overall,
            "n_same_texts": written.drift.n_same_texts,
            "n_prompts": written.drift.n_prompts,
            "logit_change": written.drift.largest_logit_change,
            "n_said": written.drift.n_said_served,
            "n_said_computed": written.drift.n_said_computed,
            "n_facts": written.drift.n_facts,
        }


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in [path, *path.rglob("*")] if each.is_file())


def main() -> None:
    """Write edits in every form."""
    parser = make_parser(__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--n-edits", type=int, default=15)
    args: argparse.Namespace = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for name in args.models:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, args.n_edits, Path(folder))
    record(args, {"n_edits": args.n_edits}, rows)


if __name__ == "__main__":
    main()
