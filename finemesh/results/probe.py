"""probe.html and the summary in the terminal: what `finemesh probe` measured, with intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table

import finemesh
from finemesh.disk import write_text
from finemesh.results.report import HERE
from finemesh.results.report.charts import Chart, Line, Mark, Scale, Tick, path

KINDS = {"pretrained": "pre-trained", "random": "randomly initialised", "tuned": "tuned"}
LOOKS = {"pretrained": "c0 circle", "random": "c1 square"}
GROUPS = {"all": "all weight matrices", "body": "those of the layers"}
WAYS = {"filter": ("Filter-normalised", "distance, in lengths of every row of the weights"),
        "unit": ("Unit-normalised", "distance")}
SHOWN = "0.01"  # the top whose share is drawn layer by layer


def write_probe(folder: Path, document: Mapping[str, Any]) -> Path:
    """Writes probe.html; a former one is replaced whole."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("probe.html").render(
        about=document, kinds=KINDS, looks=LOOKS, concentration=concentration_rows(document), layers=by_layer(document),
        ways=[(title, along(document, way, axis), oscillation_rows(document, way)) for way, (title, axis) in WAYS.items()],
        flatness=flatness_rows(document), version=finemesh.__version__,
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")))
    file = folder / "probe.html"
    write_text(file, page)
    return file


def print_probe(document: Mapping[str, Any], console: Console) -> None:
    console.print(_table("Share of the gradient's squared norm (of the norm) in its largest components, a batch",
                         ["largest", *(KINDS[kind] for kind in document["gradients"])], concentration_rows(document)))
    for way, (title, _) in WAYS.items():
        console.print(_table(f"{title} random directions, nats", ["", "from lowest to highest", "oscillation", "local minima"],
                             oscillation_rows(document, way)))
    console.print(_table("Rise of the loss nearby, nats", ["", "loss", "worst", "mean"], flatness_rows(document)))
    for file in document["files"]:
        console.print(file, soft_wrap=True, markup=False)


def concentration_rows(document: Mapping[str, Any]) -> list[list[str]]:
    gradients = document["gradients"]
    return [[f"{float(top):.1%} of {title}", *(_share(found[group]["batch"][top]) for found in gradients.values())]
            for group, title in GROUPS.items() if all(group in found for found in gradients.values())
            for top in document["tops"]]


def oscillation_rows(document: Mapping[str, Any], way: str) -> list[list[str]]:
    return [[KINDS[kind], *(_spread(found[way][name]) for name in ("amplitude", "oscillation", "local_minima"))]
            for kind, found in document["landscape"].items()]


def flatness_rows(document: Mapping[str, Any]) -> list[list[str]]:
    return [[KINDS[kind], *(_spread(found[name]) for name in ("loss", "worst_rise", "mean_rise"))]
            for kind, found in document["flatness"].items()]


def by_layer(document: Mapping[str, Any]) -> Chart:
    """The share of the squared norm in the top 1 % of every matrix, in the order of the model."""
    gradients = document["gradients"]
    names = list(gradients["pretrained"]["layers"])
    across, up = Scale(0, max(1, len(names) - 1)), Scale(0, 1)
    marks = [Mark(across.at(i), 100 - up.at(found["layers"][name][SHOWN]["squared"]["mean"]), LOOKS[kind])
             for kind, found in gradients.items() for i, name in enumerate(names) if name in found["layers"]]
    return Chart("Share of the squared gradient norm in the largest 1 % of the components of every weight matrix.",
                 "weight matrix, from the input to the output", "share of the squared norm", across.ticks(8),
                 [Tick(100 - up.at(share), f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)], (), marks)


def along(document: Mapping[str, Any], way: str, axis: str) -> Chart:
    """Every curve as its rise over the loss in the middle."""
    curves = [(kind, found[way]["distances"], _rise(losses)) for kind, found in document["landscape"].items()
              for losses in found[way]["losses"]]
    rises = [rise for _, _, curve in curves for rise in curve if rise is not None]
    up = Scale(min(rises), max(rises) or 1.0)
    across = Scale(min(curves[0][1]), max(curves[0][1]))
    lines = [Line(path((across.at(x), 100 - up.at(rise)) for x, rise in zip(distances, curve, strict=True) if rise is not None),
                  LOOKS[kind]) for kind, distances, curve in curves]
    return Chart("Rise of the loss along random directions.", axis, "rise of the loss, nats", across.ticks(6),
                 [Tick(100 - tick.at, tick.text) for tick in up.ticks()], lines)


def _rise(losses: Sequence[float | None]) -> list[float | None]:
    middle = losses[len(losses) // 2]
    return [None if loss is None or middle is None else loss - middle for loss in losses]


def _share(found: Mapping[str, Any]) -> str:
    squared, norm = found["squared"], found["norm"]
    return f"{squared['mean']:.1%} ({max(0.0, squared['low']):.1%} to {min(1.0, squared['high']):.1%}); norm {norm['mean']:.1%}"


def _spread(found: Mapping[str, float] | None) -> str:
    return "not finite" if found is None else f"{found['mean']:.3g} ({found['low']:.3g} to {found['high']:.3g})"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    return table
