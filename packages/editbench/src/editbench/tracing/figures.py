"""The pictures of a trace: heat maps of a prompt and of averages, bands by layer, severed bars."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from editbench.files.figure_files import figure_settings, render
from editbench.tracing.effects import ROLE_NAMES, ROLES, Effects, Role
from editbench.tracing.folder import write_file
from editbench.tracing.manifest import Trace
from editbench.tracing.settings import KINDS, Kind, SeveredKind
from editbench.tracing.traces import PromptTrace

_SETTINGS: Mapping[Any, Any] = {
    "figure.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
}
# One hue each, from light to dark: they tell the kinds apart, and lose nothing in grey.
_COLOR_MAPS: Mapping[Kind, str] = {"hidden": "Purples", "mlp": "Greens", "attention": "Reds"}
# Okabe and Ito's colors; line, marker and hatch say the same without them.
_BARS: Mapping[Kind | SeveredKind, tuple[str, str, str]] = {
    "hidden": ("#cc79a7", "", "restored state"),
    "severed_mlp": ("#009e73", "////", "restored state, MLPs severed"),
    "severed_attention": ("#d55e00", "....", "restored state, attention severed"),
}
_LINES: Mapping[Role, tuple[str, str, str]] = {
    "first_subject": ("#e69f00", "v", ":"),
    "middle_subject": ("#56b4e9", "s", "--"),
    "last_subject": ("#0072b2", "o", "-"),
    "first_subsequent": ("#cc79a7", "P", "-."),
    "further": ("#7f7f7f", "x", ":"),
    "last": ("#000000", "D", "--"),
}
_MAX_NUMBERED_LAYERS = 12
_MAX_LABEL = 28


def write_figures(
    folder: Path, trace: Trace, effects: Effects, suggested: Sequence[int], *, n_prompts: int
) -> list[Path]:
    """Draw a trace: the heat maps of its first prompts, and the averages over all of them.

    Args:
        folder: The trace folder; pictures go into ``figures/``, each as PNG and SVG, and the same
            trace gives the same bytes every time.
        trace: The trace.
        effects: Its averages.
        suggested: Critical layers to mark; may be empty.
        n_prompts: How many prompts get a heat map of their own.

    Returns:
        The files.

    Raises:
        TraceError: They cannot be written.
    """
    settings, facts = trace.manifest.settings, trace.manifest.facts
    source = f"model {trace.manifest.model['name']}, facts {facts['source']}"
    drawings: dict[str, Callable[[], Figure]] = {
        f"prompt-{number:05d}": partial(draw_prompt, one, settings.window, settings.n_samples)
        for number, one in enumerate(trace.prompts[:n_prompts])
    }
    drawings["average"] = lambda: draw_average(effects, settings.window, source)
    drawings["profiles"] = lambda: draw_profiles(effects, settings.window, source)
    if settings.severed:
        drawings["severed"] = lambda: draw_severed(effects, source, suggested)
    written = []
    for name, draw in drawings.items():
        with figure_settings(_SETTINGS):
            contents = render(draw())
        for ending, content in contents.items():
            path = folder / "figures" / f"{name}{ending}"
            write_file(path, content)
            written.append(path)
    return written


def draw_prompt(trace: PromptTrace, window: int, n_samples: int) -> Figure:
    """Scores of one prompt by token and layer, a panel for each kind (as in Figure 1)."""
    prompt = trace.prompt
    labels = [
        _shorten(text) + ("*" if position in prompt.subject else "")
        for position, text in enumerate(prompt.texts)
    ]
    kinds = [kind for kind in KINDS if kind in trace.scores]
    figure = _make_figure(len(kinds), labels)
    for axes, kind in _panels(figure, kinds):
        scores = trace.scores[kind]
        highest = max(trace.high_score, float(scores.max()))
        _draw_map(figure, axes, kind, scores, (trace.low_score, highest), "probability of answer")
        _label(axes, kind, window, scores.shape[1], labels)
    figure.suptitle(
        f"“{_shorten(prompt.fact.prompt, 90)}” → “{prompt.answer_text.strip()}”\n"
        f"probability {trace.high_score:.2f} clean, {trace.low_score:.2f} corrupted; "
        f"mean of {n_samples} noise samples; * subject"
    )
    return figure


def draw_average(effects: Effects, window: int, source: str) -> Figure:
    """Mean effect by role of the token and layer, a panel for each kind (as in Figure 2)."""
    kinds = [kind for kind in KINDS if any(line.kind == kind for line in effects.lines)]
    roles = [role for role in ROLES if effects.profile(kinds[0], role)]
    labels = [f"{ROLE_NAMES[role]} (n = {effects.profile(kinds[0], role)[0].n})" for role in roles]
    figure = _make_figure(len(kinds), labels)
    for axes, kind in _panels(figure, kinds):
        rows = [[line.effect for line in effects.profile(kind, role)] for role in roles]
        values = np.array(rows).clip(min=0)
        bounds = (0.0, max(float(values.max()), 1e-9))
        _draw_map(figure, axes, kind, values, bounds, "mean effect (probability)")
        _label(axes, kind, window, effects.n_layers, labels)
    figure.suptitle(
        f"Mean indirect effect on the answer's probability\n{_describe(effects, source)}"
    )
    return figure


def draw_profiles(effects: Effects, window: int, source: str) -> Figure:
    """Mean effect by layer with 95 % bands, a line for each role, a panel for each kind."""
    kinds = [kind for kind in KINDS if any(line.kind == kind for line in effects.lines)]
    figure = Figure(figsize=(3.2 * len(kinds) + 0.6, 4.1), layout="constrained")
    for axes, kind in _panels(figure, kinds):
        for role in ROLES:
            if lines := effects.profile(kind, role):
                color, marker, style = _LINES[role]
                layers = [line.layer for line in lines]
                axes.plot(
                    layers,
                    [line.effect for line in lines],
                    color=color,
                    marker=marker,
                    ls=style,
                    label=f"{ROLE_NAMES[role]} (n = {lines[0].n})",
                    markevery=max(1, len(lines) // 12),
                )
                low, high = ([line.ci_low for line in lines], [line.ci_high for line in lines])
                axes.fill_between(layers, low, high, color=color, alpha=0.2, linewidth=0)
        _label(axes, kind, window, effects.n_layers)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    figure.axes[0].set_ylabel("mean effect (probability)")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, handlelength=3.2)
    figure.suptitle(f"Mean indirect effect by layer, with 95 % bands\n{_describe(effects, source)}")
    return figure


def draw_severed(effects: Effects, source: str, suggested: Sequence[int]) -> Figure:
    """Effects at the last subject token with modules severed, as bars (as in Figure 3)."""
    n_layers = effects.n_layers
    figure = Figure(figsize=(max(5.2, 0.42 * n_layers + 2.0), 3.8), layout="constrained")
    axes = figure.subplots()
    if suggested:
        first, last = suggested[0], suggested[-1]
        axes.axvspan(
            first - 0.5,
            last + 0.5,
            color="#eeeeee",
            zorder=0,
            label=f"suggested range {first}" + (f" to {last}" if last > first else ""),
        )
    found = {kind: effects.profile(kind, "last_subject") for kind in _BARS}
    present = {kind: lines for kind, lines in found.items() if lines}
    width = 0.8 / len(present)
    for place, (kind, lines) in enumerate(present.items()):
        color, hatch, label = _BARS[kind]
        shown = np.array([line.effect for line in lines])
        spread = np.array([line.ci_high - line.effect for line in lines])
        axes.bar(
            np.arange(n_layers) + (place - (len(present) - 1) / 2) * width,
            shown,
            width,
            yerr=None if np.isnan(spread).any() else spread,
            color=color,
            hatch=hatch,
            edgecolor="black",
            linewidth=0.5,
            error_kw={"elinewidth": 0.8, "capsize": 1.5},
            label=label,
        )
    axes.set_xlabel("layer whose state is restored at the last subject token")
    axes.set_ylabel("mean effect (probability)")
    _tick_layers(axes, n_layers)
    axes.set_xlim(-0.6, n_layers - 0.4)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    figure.suptitle(
        f"Effect at the last subject token, modules severed (± 95 %)\n{_describe(effects, source)}"
    )
    return figure


def _make_figure(n_panels: int, labels: Sequence[str]) -> Figure:
    width = 2.5 * n_panels + 0.075 * max(map(len, labels)) + 0.4
    return Figure(figsize=(width, max(2.7, 0.23 * len(labels) + 1.8)), layout="constrained")


def _panels(figure: Figure, kinds: Sequence[Kind]) -> list[tuple[Axes, Kind]]:
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    return list(zip(panels, kinds, strict=True))


def _draw_map(
    figure: Figure,
    axes: Axes,
    kind: Kind,
    values: NDArray[np.float64],
    bounds: tuple[float, float],
    unit: str,
) -> None:
    low, high = bounds
    image = axes.imshow(
        values, cmap=_COLOR_MAPS[kind], vmin=low, vmax=high, aspect="auto", interpolation="nearest"
    )
    bar: Any = figure.colorbar(image, ax=axes, location="bottom", shrink=0.9, aspect=30)
    bar.set_label(unit)
    if values.shape[1] <= _MAX_NUMBERED_LAYERS:
        for (row, column), value in np.ndenumerate(values):
            shade = (value - low) / max(high - low, 1e-12)
            ink = "white" if shade > 0.6 else "black"
            text = f"{value:.2f}".lstrip("0") if value < 1 else f"{value:.1f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=ink)


def _label(
    axes: Axes, kind: Kind, window: int, n_layers: int, rows: Sequence[str] | None = None
) -> None:
    if rows is not None:
        axes.set_yticks(range(len(rows)), rows)
        axes.tick_params(axis="y", length=0)
    name = {"hidden": "state", "mlp": "MLP output", "attention": "attention output"}[kind]
    is_window = kind != "hidden" and window > 1
    axes.set_title(f"{window} {name}s restored" if is_window else f"one {name} restored")
    axes.set_xlabel("middle layer of the window" if is_window else "layer")
    _tick_layers(axes, n_layers)


def _tick_layers(axes: Axes, n_layers: int) -> None:
    step = 1 if n_layers <= 16 else 5
    axes.set_xticks(range(0, n_layers, step))


def _describe(effects: Effects, source: str) -> str:
    return (
        f"{_shorten(source, 80)}\nn = {effects.clean.n} prompts; probability "
        f"{effects.clean.value:.2f} clean, {effects.corrupted.value:.2f} corrupted"
    )


def _shorten(text: str, length: int = _MAX_LABEL) -> str:
    text = " ".join(text.split()) if text.strip() else repr(text)[1:-1].replace(" ", "␣")
    return text if len(text) <= length else f"{text[: length - 1]}…"
