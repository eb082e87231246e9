"""What charts are made of, in percent of the plot: the template draws a Chart as one stretched SVG with HTML labels.

So charts are as wide as the page with text of constant size, follow the page's colours, and need no script.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import quantiles

from finemesh.results import words

# A method keeps its colour and shape in every report; others follow in the order of their names.
KNOWN = ("lora", "full", "head", "prompt", "prefix", "sift", "p_tuning", "instruction_prompt")
SHAPES = ("circle", "square", "diamond", "triangle", "cross", "hexagon", "star", "wedge")


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A point; `kind` says how it is drawn (the page's style sheet), `look` the colour and shape of a method."""

    x: float
    y: float
    look: str
    kind: str = ""
    trial: int | None = None  # whose row in the table of trials says more


@dataclass(frozen=True)
class Line:
    points: str  # "0,1 2,3 ..."
    look: str
    kind: str = ""
    trial: int | None = None


@dataclass(frozen=True)
class Label:
    """Text beside the plot's right edge, at the height `at`."""

    at: float
    text: str
    look: str


@dataclass(frozen=True)
class Chart:
    name: str  # what a screen reader says
    x_title: str
    y_title: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    lines: Sequence[Line] = ()
    marks: Sequence[Mark] = ()
    labels: Sequence[Label] = ()
    note: str = ""


@dataclass(frozen=True)
class Scale:
    """Values to percent; what lies beyond the ends is drawn at the ends."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log(x) for x in (self.low, self.high, max(value, 1e-300))) if self.log else (
            self.low, self.high, value)
        return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2) if high > low else 50.0

    def ticks(self, most: int = 6) -> list[Tick]:
        values = powers(self.low, self.high, most) if self.log else steps(self.low, self.high, most)
        return [Tick(self.at(value), text) for value, text in values]


def steps(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Multiples of 1, 2 or 5 times a power of ten: at most `most` of them."""
    if high <= low:
        return [(low, f"{low:g}")]
    rough = (high - low) / most
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(i * step, f"{i * step:,.{digits}f}") for i in range(first, last + 1)]


def powers(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Powers of ten between the ends, or the ends where there are none."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first + 1) / most))
    found = [(10.0**i, f"1e{i}" if abs(i) > 2 else f"{10.0**i:g}") for i in range(first, last + 1, every)]
    return found or [(low, f"{low:.3g}"), (high, f"{high:.3g}")]


def loss_scale(losses: Iterable[float]) -> Scale:
    """Room for all but the outliers, which would flatten the rest: they are drawn at the edge."""
    known = sorted(loss for loss in losses if math.isfinite(loss))
    if not known:
        return Scale(0.0, 1.0)
    low, high = known[0], known[-1]
    if len(known) >= 4:
        first, _, third = quantiles(known, n=4, method="inclusive")
        high = min(high, third + 2.5 * (third - first) + 0.02 * abs(third))
    margin = 0.06 * (high - low) or 0.05 * abs(low) or 0.05
    return Scale(low - margin, high + margin)


def beyond(losses: Iterable[float], scale: Scale) -> str:
    """What is said of the losses that the scale has no room for."""
    above = sum(loss > scale.high for loss in losses)
    known = words.count(above, "loss", "losses")
    return f"{known} above {words.loss(scale.high)} drawn at the upper edge." if above else ""


def looks(methods: Iterable[str]) -> dict[str, str]:
    """Colour and shape of every method, as the class names of the style sheet."""
    order = [*KNOWN, *sorted(set(methods) - set(KNOWN))]
    return {name: f"c{i % 8} {SHAPES[(i + i // 8) % 8]}" for i, name in enumerate(order) if name in set(methods)}


def path(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def apart(labels: Sequence[Label], gap: float) -> list[Label]:
    """The labels in order from the top, moved so that none is nearer than `gap` percent to the next."""
    placed: list[Label] = []
    for label in sorted(labels, key=lambda label: label.at):
        at = max(label.at, placed[-1].at + gap) if placed else label.at
        placed.append(Label(at, label.text, label.look))
    over = max(0.0, placed[-1].at - 100) if placed else 0.0
    return [Label(label.at - over, label.text, label.look) for label in placed]
