"""Figures of the page: cut into panels, every number with its place."""

import re
from xml.etree import ElementTree as ET

import pytest

from editbench.results.figures.drawing import choose_figures
from editbench.results.html.plots import plot
from editbench.results.report import summarize

EXPERIMENTS = (
    "table1", "scaling", "categories", "mixing", "weight-decay", "layers", "attention", "lambda",
    "demonstrations",
)  # fmt: skip


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_number_has_a_place_in_its_panel(write_experiment, experiment):
    summary = summarize([write_experiment(experiment, n_cases=8)])
    (figure,) = choose_figures(summary)
    found = plot(figure, summary.metrics)
    frames = [
        [float(number) for number in re.search(r'viewBox="([^"]*)"', panel.svg)[1].split()]
        for panel in found.panels
    ]
    assert found.title
    assert "Model gpt2-xl, dataset counterfact" in found.caption
    assert found.numbers
    for number in found.numbers:
        assert number.panel is not None, number.point
        left, top, width, height = frames[number.panel]
        assert left <= number.x <= left + width
        assert top <= number.y <= top + height


def test_ids_and_references_agree_and_are_the_figures_own(write_experiment):
    summary = summarize([write_experiment("scaling", n_cases=8)])
    (figure,) = choose_figures(summary)
    found = plot(figure, summary.metrics)
    drawings = [ET.fromstring(panel.svg) for panel in (*found.panels, found.legend)]
    elements = [element for drawing in drawings for element in drawing.iter()]
    ids = [element.get("id") for element in elements if element.get("id")]
    assert len(set(ids)) == len(ids)
    assert all(each.startswith("plot-scaling-") for each in ids)
    markup = "".join(panel.svg for panel in (*found.panels, found.legend))
    references = re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', markup)
    assert references
    assert {one or other for one, other in references} <= set(ids)


def test_colors_belong_to_the_theme(write_experiment):
    summary = summarize([write_experiment("table1", n_cases=8)])
    (figure,) = choose_figures(summary)
    markup = "".join(panel.svg for panel in plot(figure, summary.metrics).panels)
    assert re.findall(r"(?<!&)#[0-9a-f]{6}\b", markup) == []
    assert "var(--plot-ink)" in markup


def test_numbers_are_written_for_readers(write_experiment):
    summary = summarize([write_experiment("scaling", n_cases=8)])
    (figure,) = choose_figures(summary)
    number = next(
        each
        for each in plot(figure, summary.metrics).numbers
        if each.point.metric == "score" and each.point.series == "memit" and each.point.x == 1000
    )
    assert number.place == "1,000"
    assert re.fullmatch(r"S \d+\.\d % \(\d+\.\d … \d+\.\d\)", number.text)
