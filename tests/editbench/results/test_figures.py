"""The figures of runs: files that can be read by people, by programs, and again."""

import csv
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.text import Text

from editbench.files.figure_files import figure_settings
from editbench.results.figures import draw_figures
from editbench.results.figures.drawing import choose_figures, guess_figure
from editbench.results.figures.panels import legend_line, make_panels, write_number
from editbench.results.figures.style import SETTINGS, choose_styles
from editbench.results.figures.sweep import write_layers
from editbench.results.report import summarize

EXPERIMENTS = (
    "table1", "table2", "scaling", "categories", "mixing", "weight-decay", "layers", "attention",
    "lambda", "demonstrations",
)  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"


def draw(folder: Path, to: Path) -> dict[str, Path]:
    """The files of a run's only figure, by their ending."""
    paths = {path.suffix: path for path in draw_figures(summarize([folder]), to)}
    assert set(paths) == {".png", ".svg", ".csv"}
    return paths


def read_svg(path: Path) -> list[str]:
    """Every line of text in an SVG."""
    root = ElementTree.parse(path).getroot()
    assert root.tag == f"{SVG}svg"
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def read_points(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("experiment", "axis", "n"),
    [
        ("table1", "ES (%) ↑", "n = 300 edits at once, measured on 12 cases."),
        ("table2", "PPL ↓", "n = 300 edits at once, measured on 12 cases."),
        ("scaling", "n (edits)", "n = 1 to 1,000 edits at once, measured on 12 cases."),
        ("categories", "generalization: PS (%) ↑", "n = 300 edits at once of each relation"),
        ("mixing", "S (%) ↑", "n = 24 to 700 edits at once"),
        ("weight-decay", "rate (%)", "n = 1,000 edits at once"),
        ("layers", "layers written to", "n = 100 to 1,000 edits at once"),
        ("attention", "GE (bits × 100) ↑", "n = 32 to 1,000 edits at once"),
        ("lambda", "λ (weight of C)", "n = 100 to 1,000 edits at once"),
        ("demonstrations", "rate (%) ↑", "n = 20 edits at once"),
    ],
)
def test_every_experiment_has_its_figure(write_experiment, tmp_path, experiment, axis, n):
    paths = draw(write_experiment(experiment, n_cases=12, all_metrics=True), tmp_path / "figures")
    assert [path.name for path in paths.values()] == [
        f"{experiment}.{end}" for end in ("png", "svg", "csv")
    ]
    assert imread(paths[".png"]).std() > 0.05  # something is drawn
    texts = read_svg(paths[".svg"])
    assert axis in texts
    everything = " ".join(texts)
    assert n in everything
    assert "% CI" in everything
    assert "gpt2-xl" in everything
    points = read_points(paths[".csv"])
    assert points
    assert all(point["n"] and point["metric"] and point["value"] for point in points)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_nothing_is_cut_off(write_experiment, experiment):
    """Every text lies within the figure, and no legend on a panel."""
    (figure,) = choose_figures(summarize([write_experiment(experiment, all_metrics=True)]))
    with figure.drawn() as drawing:
        figure = drawing.figure
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        width, height = figure.bbox.size
        for text in figure.findobj(Text):
            if text.get_visible() and text.get_text() and not is_unused_tick(text, figure):
                box = text.get_window_extent(renderer)
                assert -1 <= box.x0 <= box.x1 <= width + 1, text.get_text()
                assert -1 <= box.y0 <= box.y1 <= height + 1, text.get_text()
        for legend in figure.legends:
            for axes in figure.axes:
                assert not legend.get_window_extent(renderer).overlaps(
                    axes.get_window_extent(renderer)
                )
                title = axes.title if axes.title.get_text() else axes._left_title
                assert not legend.get_window_extent(renderer).overlaps(
                    title.get_window_extent(renderer)
                ), title.get_text()
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                assert_labels_are_apart(axis, renderer)


def is_unused_tick(text: Text, figure: object) -> bool:
    """Whether a text is a tick's that lies outside its axis and so is not drawn."""
    for axes in figure.axes:
        for axis, interval in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            low, high = sorted(interval)
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if text in (tick.label1, tick.label2):
                    return not low <= tick.get_loc() <= high
    return False


def assert_labels_are_apart(axis: object, renderer: object) -> None:
    low, high = sorted(axis.get_view_interval())
    boxes = [
        (tick.label1.get_text(), tick.label1.get_window_extent(renderer))
        for tick in axis.get_major_ticks()
        if tick.label1.get_text() and tick.label1.get_visible() and low <= tick.get_loc() <= high
    ]
    if any(tick.label1.get_rotation() for tick in axis.get_major_ticks()):
        return  # the boxes of slanted texts overlap, the texts do not
    for (one, first), (other, second) in pairwise(boxes):
        assert not first.overlaps(second), (one, other)


def test_files_are_the_same_every_time(write_experiment, tmp_path):
    run = write_experiment("table2")
    contents = []
    for name in ("one", "other"):
        paths = draw(run, tmp_path / name)
        contents.append({end: path.read_bytes() for end, path in paths.items()})
    assert contents[0] == contents[1]
    assert b"<dc:date>" not in contents[0][".svg"]


def test_settings_of_the_user_neither_matter_nor_change(write_experiment, tmp_path):
    run = write_experiment("attention")
    before = draw(run, tmp_path / "before")[".svg"].read_bytes()
    with mpl.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.fonttype": "path"}):
        during = draw(run, tmp_path / "during")[".svg"].read_bytes()
        assert mpl.rcParams["font.size"] == 30
    assert before == during


def test_the_data_are_the_numbers_of_the_report(write_experiment, tmp_path):
    run = write_experiment("scaling")
    points = read_points(draw(run, tmp_path / "figures")[".csv"])
    lines = summarize([run]).lines
    assert len(points) == len(lines)
    expected = {(x.editor, float(x.n_edits), x.metric): (x.value, x.ci_low, x.n) for x in lines}
    for point in points:
        value, low, n = expected[point["series"], float(point["x"]), point["metric"]]
        assert (float(point["value"]), int(point["n"])) == (value, n)
        assert float(point["ci_low"]) == low


def test_panels_stand_in_the_papers_order(write_experiment, tmp_path):
    points = read_points(
        draw(write_experiment("scaling", all_metrics=True), tmp_path / "f")[".csv"]
    )
    assert list(dict.fromkeys(point["panel"] for point in points)) == [
        "S", "ES", "PS", "NS", "SA", "EA", "PA", "NA", "GE", "RS", "PPL",
    ]  # fmt: skip


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_unfinished_run_is_drawn_as_far_as_it_is(write_experiment, experiment):
    """Half of the trials are there, and none of the unedited model; one has failed."""
    kept: list[str] = []

    def is_missing(trial) -> bool:
        if trial.editor == "unedited":
            return True
        kept.append(trial.hash)
        return len(kept) % 2 == 0

    first: list[str] = []

    def has_failed(trial) -> bool:
        if trial.editor != "unedited" and not first:
            first.append(trial.hash)
        return trial.hash in first

    run = write_experiment(experiment, missing=is_missing, failed=has_failed)
    summary = summarize([run])
    (figure,) = choose_figures(summary)
    with figure.drawn() as drawing:
        text = " ".join(" ".join(text.get_text() for text in drawing.figure.findobj(Text)).split())
        legends = [text.get_text() for each in drawing.figure.legends for text in each.get_texts()]
    assert f"1 of {len(summary.trials)} trials failed" in text
    assert f"of {len(summary.trials)} trials not run yet" in text
    assert len(drawing.points) > 0
    if experiment in ("scaling", "categories", "attention"):
        assert "unedited" not in legends  # what is not drawn is not explained


def test_a_run_without_numbers_has_no_figure(write_experiment, tmp_path):
    run = write_experiment("table2", missing=lambda trial: True)
    assert draw_figures(summarize([run]), tmp_path / "figures") == []
    assert not (tmp_path / "figures").exists()


def test_texts_are_counted_apart_from_cases(write_run, describe, tmp_path):
    values = {"efficacy_success": [0.0, 100.0], "perplexity": [10.0, 20.0, 30.0]}
    run = write_run({"one": describe()}, {"one": values})
    text = " ".join(read_svg(draw(run, tmp_path / "figures")[".svg"]))
    assert "measured on 2 cases (PPL on 3 texts)." in text


def test_one_case_has_no_interval_and_one_size_no_line(write_experiment, tmp_path):
    run = write_experiment("scaling", n_cases=1, missing=lambda trial: trial.n_edits > 1)
    points = read_points(draw(run, tmp_path / "figures")[".csv"])
    assert {point["ci_low"] for point in points} == {""}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_what_varies_says_which_figure_it_is(write_experiment, experiment):
    run = write_experiment(experiment, named=False)
    expected = {"table1": "editors", "table2": "editors", "demonstrations": "categories"}
    (figure,) = choose_figures(summarize([run]))
    assert figure.stem == expected.get(experiment, experiment)


def test_one_trial_is_a_figure_of_editors(describe):
    assert guess_figure([describe()]) == "editors"
    assert guess_figure([describe(), describe(config={"weight_decay": 1.0})]) == "editors"


def test_models_datasets_and_seeds_have_figures_of_their_own(write_run, describe, tmp_path):
    trials = {
        f"{model} {dataset} {seed}": describe(
            editor="unedited", config={}, model=model, model_fingerprint=model,
            dataset=dataset, dataset_fingerprint=dataset, seed=seed,
        )
        for model in ("org/one", "two")
        for dataset in ("zsre", "counterfact")
        for seed in (0, 1)
    }  # fmt: skip
    values = {name: {"efficacy_success": [0.0, 100.0]} for name in trials}
    run = write_run(trials, values, experiment="table2")
    names = {path.stem for path in draw_figures(summarize([run]), tmp_path / "figures")}
    assert names == {
        f"table2_{model}_{dataset}_seed-{seed}"
        for model in ("org-one", "two")
        for dataset in ("zsre", "counterfact")
        for seed in (0, 1)
    }


def test_datasets_of_one_name_are_told_apart_by_content(write_run, describe, tmp_path):
    trials = {
        name: describe(dataset="facts", dataset_fingerprint=f"{name}-and-more") for name in "ab"
    }
    run = write_run(trials, {name: {"efficacy_success": [0.0, 100.0]} for name in trials})
    names = {path.stem for path in draw_figures(summarize([run]), tmp_path / "figures")}
    assert names == {"editors_a-and-mo", "editors_b-and-mo"}


def test_runs_of_two_experiments_have_two_figures(write_experiment, tmp_path):
    runs = [write_experiment(name) for name in ("table2", "attention")]
    names = {path.name for path in draw_figures(summarize(runs), tmp_path / "figures")}
    assert {"table2.png", "attention.png"} <= names
    assert len(names) == 6


def test_mixing_averages_draws(write_run, describe, tmp_path):
    """Scores 60 and 80 of the two alone are 70 on average, draw by draw."""
    trials, values = {}, {}
    for relations, scores in ((("a",), (60, 62)), (("b",), (80, 78)), (("a", "b"), (65, 75))):
        for seed, score in enumerate(scores):
            name = f"{relations} {seed}"
            trials[name] = describe(relations=relations, seed=seed, n_edits=20)
            values[name] = {
                "efficacy_success": [score] * 3,
                "neighborhood_success": [score] * 3,
            }
    run = write_run(trials, values, experiment="mixing")
    points = {p["series"]: p for p in read_points(draw(run, tmp_path / "figures")[".csv"])}
    found = {
        name: (round(float(point["value"]), 6), int(point["n"])) for name, point in points.items()
    }
    assert found == {
        "a alone": (61.0, 2),
        "b alone": (79.0, 2),
        "a and b mixed": (70.0, 2),
        "mean of a and b alone": (70.0, 2),
    }
    # Draw by draw the mean is 70 both times; a's spread alone is 1.41, and t is 6.31.
    mean = points["mean of a and b alone"]
    assert (float(mean["ci_low"]), float(mean["ci_high"])) == (pytest.approx(70), pytest.approx(70))
    assert float(points["a alone"]["ci_high"]) == pytest.approx(61 + 6.3138, abs=1e-3)


def test_weight_decay_of_zero_has_a_place(write_experiment, tmp_path):
    paths = draw(write_experiment("weight-decay"), tmp_path / "figures")
    texts = read_svg(paths[".svg"])
    assert "0" in texts
    assert "10⁻⁵" in texts
    decays = {point["x"] for point in read_points(paths[".csv"])}
    assert {"0.0", "1e-05", "0.01", ""} <= decays


def test_a_decay_that_is_a_rule_is_counted(write_run, describe, tmp_path):
    trials = {
        name: describe(editor="ft-w", config={"weight_decay": decay})
        for name, decay in (("number", 0.1), ("rule", "power-law"))
    }
    values = {
        name: {"efficacy_success": [0.0, 100.0], "neighborhood_success": [0.0, 100.0]}
        for name in trials
    }
    run = write_run(trials, values, experiment="weight-decay")
    text = " ".join(read_svg(draw(run, tmp_path / "figures")[".svg"]))
    assert "1 trial(s) whose decay is a rule are not drawn." in text


def test_styles_differ_even_without_color():
    names = ["memit", "rome", "mend", "ft-w", "unedited", "mine", "yours", "theirs", "another"]
    styles = choose_styles(names)
    assert len({(style.color) for style in styles.values()}) >= 8
    assert len({(style.marker) for style in styles.values()}) == len(names)
    assert len({(style.line) for style in styles.values()}) == len(names)
    assert choose_styles(["memit", "x"])["memit"] == styles["memit"]
    many = choose_styles([*names, *(f"editor-{i}" for i in range(20))])
    assert len({(style.color, style.marker) for style in many.values()}) == len(names) + 20
    unedited = many.pop("unedited")
    assert unedited.color not in {style.color for style in many.values()}


def test_a_long_legend_has_room():
    styles = choose_styles([f"editor-{i}" for i in range(24)])
    with figure_settings(SETTINGS):
        figure, _ = make_panels(
            2,
            n_columns=4,
            size=(2.4, 2.3),
            legend={name: legend_line(style) for name, style in styles.items()},
            title="Many editors",
            caption="n = 10",
        )
        FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    (caption,) = (text for text in figure.texts if text.get_text() == "n = 10")
    assert legend.get_window_extent().y0 >= caption.get_window_extent().y1


@pytest.mark.parametrize(
    ("layers", "text"),
    [((3, 4, 5, 6, 7, 8), "3–8"), ((8,), "8"), ((7, 8), "7, 8"), ((0, 3, 4, 5), "0, 3–5")],
)
def test_layers_are_written_short(layers: Collection[int], text):
    assert write_layers(tuple(layers)) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (1000, "1,000"), (0.05, "0.05"), (1e-5, "10⁻⁵"), (3e6, "3·10⁶"), (1e5, "10⁵")],
)
def test_numbers_at_axes_are_short(number, text):
    assert write_number(number) == text
