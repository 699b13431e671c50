"""Figures for the page: each panel an SVG of its own, so that panels flow on a narrow screen.

What is drawn is the figure that ``--figures`` writes. It is cut at its panels, its colors become
variables of the page's style sheet, and the places of its numbers go along.
"""

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from markupsafe import Markup
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

from editbench.results.figures.drawing import RunFigure
from editbench.results.figures.panels import Drawing, find_marks
from editbench.results.figures.selection import Point
from editbench.results.labels import MetricLabel, label_metrics
from editbench.results.manifest import MetricDescription
from editbench.results.tables.model import format_number

_SVG = "{http://www.w3.org/2000/svg}"
_POINTS_PER_INCH = 72
_PIXELS_PER_POINT = 1.4
_MARGIN = 3.0  # points: a browser's letters may be wider than those that were measured
_COLORS = {
    "#000000": "ink",
    "#333333": "ink",
    "#ffffff": "ground",
    "#dddddd": "grid",
    "#7f7f7f": "grey",
    "#999999": "grey",
    "#0072b2": "blue",
    "#d55e00": "vermilion",
    "#009e73": "green",
    "#e69f00": "orange",
    "#cc79a7": "purple",
    "#56b4e9": "sky",
}


@dataclass(frozen=True, slots=True)
class Panel:
    """A part of a figure.

    Attributes:
        title: What it shows, with its vertical axis; empty for the legend.
        x_label: What its horizontal axis shows.
        svg: The drawing.
    """

    title: str
    x_label: str
    svg: Markup


@dataclass(frozen=True, slots=True)
class PlottedNumber:
    """A number of a figure.

    Attributes:
        point: The number.
        label: How its metric is written.
        panel: Index of the panel that it stands in; None if it stands in none.
        x: Horizontal place in the coordinates of the panel's SVG.
        y: Vertical place.
    """

    point: Point
    label: MetricLabel
    panel: int | None
    x: float
    y: float

    @property
    def place(self) -> str:
        """Where it stands on the horizontal axis, or among categories; empty for a level."""
        x = self.point.x
        return f"{x:,.6g}" if isinstance(x, int | float) else x

    @property
    def value(self) -> str:
        """The number as it is read."""
        return format_number(self.point.value, self.point.metric)

    @property
    def interval(self) -> str:
        """Its confidence interval; empty if there is none."""
        if self.point.ci_low is None or self.point.ci_high is None:
            return ""
        ends = (self.point.ci_low, self.point.ci_high)
        return " … ".join(format_number(end, self.point.metric) for end in ends)

    @property
    def text(self) -> str:
        """Metric, value, unit and interval."""
        unit = f" {self.label.unit}" if self.label.unit else ""
        interval = f" ({self.interval})" if self.interval else ""
        return f"{self.label.symbol} {self.value}{unit}{interval}"


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure of the page.

    Attributes:
        name: Its name, without a character that an identifier must not have.
        title: What it shows.
        caption: n, what the intervals are, and where the numbers are from.
        panels: Its panels.
        legend: Its legend, if it has one.
        numbers: What is drawn.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    legend: Panel | None
    numbers: tuple[PlottedNumber, ...]


def plot(figure: RunFigure, metrics: Iterable[MetricDescription]) -> Plot:
    """Draw a figure for the page."""
    name = re.sub(r"[^a-z0-9-]+", "-", figure.stem.lower())
    with figure.drawn() as drawing:
        title = " ".join(drawing.figure.get_suptitle().split())
        caption = " ".join(drawing.figure.get_supxlabel().split())
        panels, legend, places = _cut(drawing, f"plot-{name}")
    labels = {
        label.metric: label
        for label in label_metrics((point.metric for point in drawing.points), tuple(metrics))
    }
    numbers = tuple(
        PlottedNumber(point, labels[point.metric], *places.get(id(point), (None, 0.0, 0.0)))
        for point in drawing.points
    )
    return Plot(name, title, caption, panels, legend, numbers)


def _cut(
    drawing: Drawing, prefix: str
) -> tuple[tuple[Panel, ...], Panel | None, dict[int, tuple[int, float, float]]]:
    """Panels, the legend, and the place of each number by its identity."""
    figure = drawing.figure
    for index, axes in enumerate(figure.axes):
        axes.set_gid(f"panel-{index}")
        axes.tick_params(labelleft=True)  # a panel may come to stand alone
    for legend in figure.legends:
        legend.set_gid("legend")
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # what has been measured stays
    root = _render(drawing, prefix)
    scale = _POINTS_PER_INCH / figure.dpi
    height = figure.get_figheight() * _POINTS_PER_INCH

    def frame(artist: Artist) -> tuple[float, float, float, float]:
        box = artist.get_tightbbox() or Bbox.unit()
        return (
            box.x0 * scale - _MARGIN,
            height - box.y1 * scale - _MARGIN,
            box.width * scale + 2 * _MARGIN,
            box.height * scale + 2 * _MARGIN,
        )

    definitions = [child for child in root if child.tag == "defs"]
    panels = []
    places: dict[int, tuple[int, float, float]] = {}
    for index, axes in enumerate(figure.axes):
        group = _find(root, f"{prefix}-panel-{index}")
        parts = [*definitions, group] if index == 0 else [group]
        title = " ".join(axes.get_title(loc="left").split())
        heading = ", ".join(filter(None, (title, axes.get_ylabel())))
        panels.append(Panel(heading, axes.get_xlabel(), _write(parts, frame(axes))))
        for x, y, point in find_marks(axes):
            places[id(point)] = (index, round(x * scale, 1), round(height - y * scale, 1))
    legends = [
        Panel("", "", _write([_find(root, f"{prefix}-legend")], frame(legend)))
        for legend in figure.legends
    ]
    return tuple(panels), legends[0] if legends else None, places


def _render(drawing: Drawing, prefix: str) -> ET.Element:
    """The drawing as SVG without namespaces, names and colors fit to stand in a page."""
    image = io.BytesIO()
    drawing.figure.savefig(image, format="svg", metadata={"Date": None})
    root = ET.fromstring(image.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{_SVG}style", f"{_SVG}metadata"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = dict(_attributes(element.attrib, prefix))
    return root


def _attributes(attributes: Mapping[str, str], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in attributes.items():
        match name.rpartition("}")[2]:
            case "id":
                yield "id", f"{prefix}-{value}"
            case "href":
                yield "href", f"#{prefix}-{value.removeprefix('#')}"
            case plain:
                found = value.replace("url(#", f"url(#{prefix}-")
                yield plain, re.sub(r"#[0-9a-f]{6}\b", _variable, found)


def _variable(color: re.Match[str]) -> str:
    name = _COLORS.get(color[0])
    return color[0] if name is None else f"var(--plot-{name})"


def _find(root: ET.Element, name: str) -> ET.Element:
    return next(element for element in root.iter("g") if element.get("id") == name)


def _write(parts: Iterable[ET.Element], frame: tuple[float, float, float, float]) -> Markup:
    svg = ET.Element(
        "svg",
        {
            "viewBox": " ".join(f"{number:.1f}" for number in frame),
            "width": f"{frame[2] * _PIXELS_PER_POINT:.0f}",
            "height": f"{frame[3] * _PIXELS_PER_POINT:.0f}",
            "aria-hidden": "true",
        },
    )
    svg.extend(parts)
    return Markup(ET.tostring(svg, encoding="unicode"))
