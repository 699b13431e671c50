"""Tables of recorded rows: for each kind of row, by what it is known and how its cells are written.

A row belongs to the first table all of whose `needs` it has.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from editbench.costs.plan import describe_flops

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RowTable:
    """A markdown table.

    Attributes:
        needs: The fields that make a row one of these.
        columns: By title, how the cell is written; a row has what it lacks from its record, the
            settings and ``repeats``.
        n_words: How many columns, from the left, are text and not numbers.
    """

    needs: frozenset[str]
    columns: Mapping[str, Callable[[Row], str]]
    n_words: int = 1

    def lines(self, records: Sequence[dict[str, Any]]) -> Iterator[str]:
        """The table and an empty line, or nothing if there is no row."""
        found = [line for record in records for line in self._rows(record)]
        if found:
            yield f"| {' | '.join(self.columns)} |"
            yield f"|{'---|' * self.n_words}{'--:|' * (len(self.columns) - self.n_words)}"
            yield from found
            yield ""

    def _rows(self, record: dict[str, Any]) -> Iterator[str]:
        shared = {"model": "", "repeats": record.get("repeats"), **record["settings"]}
        for row in record["rows"]:
            if table_of(row) is self:
                cells = (write({**shared, **row}) for write in self.columns.values())
                yield f"| {' | '.join(cells)} |"


def table_of(row: Row) -> RowTable:
    """The table that a row belongs to."""
    for table in TABLES:
        if table.needs <= row.keys():
            return table
    raise ValueError(f"no table for a row with {', '.join(row)}; expected one of row_tables.TABLES")


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{1000 * seconds:,.1f} ms"


def _text(name: str) -> Callable[[Row], str]:
    return lambda row: str(row[name])


def _time(name: str) -> Callable[[Row], str]:
    return lambda row: _seconds(row[name]) if name in row else "failed"


def _count(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name]:,}"


def _percent(name: str, form: str) -> Callable[[Row], str]:
    return lambda row: f"{100 * row[name]:{form}} %" if name in row else ""


def _number(name: str, form: str = ".4g") -> Callable[[Row], str]:
    return lambda row: f"{row[name]:{form}}" if row.get(name) is not None else ""


def _ratio(row: Row) -> str:
    return f"**{row['ratio']:.1f}×**"


def _operations(name: str) -> Callable[[Row], str]:
    return lambda row: describe_flops(row[name])


def _kilobytes(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name] / 1e3:,.0f} kB" if name in row else ""


def _mebibytes(row: Row) -> str:
    return f"{row['peak_bytes'] / 2**20:,.0f} MiB"


def _megabytes(name: str) -> Callable[[Row], str]:
    return lambda row: f"{row[name] / 1e6:,.2f} MB" if row.get(name) else ""


def _share(part: str, whole: str) -> Callable[[Row], str]:
    return lambda row: f"{row[part]} of {row[whole]}"


def _paid(row: Row) -> str:
    n_steps = row.get("n_steps_to_pay")
    return "never" if n_steps is None else f"{n_steps:,}"


def _work(row: Row) -> str:
    return f"{row['shape']}, {row['n_edits']:,} facts"


def _stage_seconds(row: Row) -> str:
    return f"{row['seconds']:,.1f}" if row["seconds"] >= 0.1 else f"{row['seconds']:.2g}"


def _slowest_call(row: Row) -> str:
    calls: Sequence[float] = row.get("seconds_of_calls", ())
    if len(calls) < 2:
        return ""
    slowest = max(range(len(calls)), key=calls.__getitem__)
    return f"{calls[slowest]:.2g} s, {slowest + 1} of {len(calls)}"


def _petaflop(row: Row) -> str:
    return f"{(row['flops'] + row['double_flops']) / 1e15:,.3g}" if "flops" in row else ""


TABLES = (
    RowTable(
        frozenset({"form"}),
        {
            "model": _text("model"),
            "served as": _text("form"),
            "size": _megabytes("n_bytes"),
            "base": _megabytes("n_bytes_base"),
            "lost of the update": _percent("lost", ".2g"),
            "same greedy texts": _share("n_same_texts", "n_prompts"),
            "largest change of a logit": _number("logit_change", ".1e"),
            "facts said": _share("n_said", "n_facts"),
            "before it was written": _share("n_said_computed", "n_facts"),
        },
        n_words=2,
    ),
    RowTable(
        frozenset({"stage"}),
        {
            "work": _work,
            "stage": _text("stage"),
            "seconds": _stage_seconds,
            "slowest call": _slowest_call,
            "PFLOP": _petaflop,
            "utilization": _percent("utilization", ".0f"),
            "peak GiB": _number("peak_gib", ".1f"),
        },
        n_words=2,
    ),
    RowTable(
        frozenset({"slow", "fast"}),
        {
            "what": _text("what"),
            "model": _text("model"),
            "usual way": _time("slow"),
            "here": _time("fast"),
            "ratio": _ratio,
            "largest difference": _number("difference", ".0e"),
            "turns": _count("repeats"),
        },
        n_words=2,
    ),
    RowTable(
        frozenset({"times_as_long"}),
        {
            "scorers of": _text("what"),
            "model": _text("model"),
            "success and accuracy": _time("two_scorers"),
            "generation-match, too": _time("three_scorers"),
            "times as long": _number("times_as_long", ".2f"),
            "tokens of a text": _number("tokens_of_a_text", ".1f"),
            "turns": _count("repeats"),
        },
        n_words=2,
    ),
    RowTable(
        frozenset({"single_seconds", "stream_seconds"}),
        {
            "what": _text("what"),
            "model": _text("model"),
            "single edits": _time("single_seconds"),
            "stream": _time("stream_seconds"),
            "stream : single": _number("cost", ".2f"),
            "steps of z": _number("single_steps", ".1f"),
            "in the stream": _number("stream_steps", ".1f"),
            "turns": _count("repeats"),
        },
        n_words=2,
    ),
    RowTable(
        frozenset({"n", "peak_bytes"}),
        {
            "what": _text("what"),
            "seconds": _time("seconds"),
            "peak memory": _mebibytes,
            "for each further fact": _kilobytes("peak_bytes_a_fact"),
            "held on purpose": _kilobytes("planned_bytes_a_fact"),
            "runs": _count("repeats"),
        },
    ),
    RowTable(
        frozenset({"exponent"}), {"growth": _text("what"), "exponent": _number("exponent", ".2f")}
    ),
    RowTable(
        frozenset({"slow_operations"}),
        {
            "counted": _text("what"),
            "usual way": _operations("slow_operations"),
            "here": _operations("fast_operations"),
            "ratio": _ratio,
            "of it before the steps": _percent("setup_share", ".0f"),
        },
    ),
    RowTable(
        frozenset({"forwards"}),
        {
            "keys of": _text("what"),
            "planned": _operations("operations"),
            "forwards of their rows": _number("forwards", ".2f"),
        },
    ),
    RowTable(
        frozenset({"padding"}),
        {
            "padding of": _text("what"),
            "tokens": _count("n_tokens"),
            "batches": _count("n_batches"),
            "padding": _percent("padding", ".1f"),
        },
    ),
    RowTable(
        frozenset({"dtype"}),
        {
            "half precision": _text("what"),
            "type": _text("dtype"),
            "δ off by (median)": _percent("offset_median", ".2g"),
            "(worst)": _percent("offset_worst", ".2g"),
            "z off by (median)": _percent("state_median", ".2g"),
            "(worst) ": _percent("state_worst", ".2g"),
            "least cosine of δ": _number("cosine_least"),
            "steps": _number("mean_steps"),
            "loss": _number("mean_loss"),
            "in float32": _number("mean_loss_in_float32"),
            "ES": _number("efficacy_success"),
            "PS": _number("paraphrase_success"),
            "NS": _number("neighborhood_success"),
        },
        n_words=2,
    ),
    RowTable(
        frozenset({"likelier", "argmax", "said"}),
        {
            "kind of facts": _text("what"),
            "options": lambda row: f"`{row['options']}`" if row["options"] else "–",
            "facts": _count("n_facts"),
            "at once": _count("n_at_once"),
            "steps of z": _number("steps", ".1f"),
            "likelier": _number("likelier", ".0f"),
            "argmax": _number("argmax", ".0f"),
            "said": _number("said", ".0f"),
            "neighbors unchanged": _number("neighbors_unchanged", ".0f"),
        },
        n_words=2,
    ),
    RowTable(
        frozenset({"option"}),
        {
            "options of z": _text("what"),
            "option": lambda row: f"`{row['option']}`" if "=" in row["option"] else row["option"],
            "seconds of z": _time("seconds"),
            "times as fast": _number("ratio", ".2f"),
            "steps of an offset": _number("mean_steps", ".1f"),
            "S": _number("score", ".1f"),
            "ES": _number("efficacy_success", ".1f"),
            "PS": _number("paraphrase_success", ".1f"),
            "NS": _number("neighborhood_success", ".1f"),
        },
        n_words=2,
    ),
    RowTable(
        frozenset({"eager_seconds"}),
        {
            "compiled": _text("what"),
            "by": _text("compiler"),
            "model": _text("model"),
            "a step as it is": _time("eager_seconds"),
            "compiled ": _time("compiled_seconds"),
            "compiling": _time("compiling_seconds"),
            "steps until it has paid": _paid,
        },
        n_words=3,
    ),
    RowTable(
        frozenset({"excess"}),
        {
            "second moments until `auto` stopped": _text("what"),
            "compared with": _count("n_compared"),
            "excess": _percent("excess", ".1f"),
        },
    ),
)
