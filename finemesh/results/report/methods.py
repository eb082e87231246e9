"""Method against method on the validation split: all trials, the median, the best; repeats and references beside.

Where trials were pruned, all are drawn as they were after as many steps, faint, and the complete ones at their ends.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from finemesh.results import words
from finemesh.results.record import Record
from finemesh.results.report.charts import Mark, Scale, Tick, loss_scale
from finemesh.results.report.history import kind
from finemesh.trial import Outcome


@dataclass(frozen=True)
class Spread:
    """One setting on several seeds: the lowest, mean and highest loss, in percent of the track."""

    title: str
    low: float
    mean: float
    high: float
    text: str
    kind: str  # repeat, reference


@dataclass(frozen=True)
class Strip:
    """A method's trials on one track; the median is that of all that are compared."""

    method: str
    look: str
    text: str
    marks: Sequence[Mark]
    median: float | None
    spreads: Sequence[Spread]


@dataclass(frozen=True)
class Strips:
    rows: Sequence[Strip]
    ticks: Sequence[Tick]


def losses(outcomes: Sequence[Outcome]) -> list[float]:
    return [o.validation_loss for o in outcomes if o.validation_loss is not None and o.state in ("complete", "pruned")]


def strips(record: Record, looks: Mapping[str, str]) -> Strips | None:
    """None where no trials can be compared."""
    again = [loss for outcomes in record.references.values() for loss in losses(outcomes)] + losses(record.repeats)
    scale = loss_scale(losses(record.early) + losses(record.scored) + again)
    if not record.compared:
        return None
    return Strips([strip(record, method, looks[method], scale) for method in record.methods], scale.ticks())


def strip(record: Record, method: str, look: str, scale: Scale) -> Strip:
    complete, early, compared = ([o for o in outcomes if o.method == method]
                                 for outcomes in (record.scored, record.early, record.compared))
    winner = (record.winner or {}).get("number")
    marks = [Mark(scale.at(o.validation_loss or 0.0), jitter(o.number), look, how, o.number)
             for o, how in [*((o, "pruned") for o in reversed(early)), *((o, kind(o, winner)) for o in reversed(complete))]]
    found = losses(compared)
    text = words.count(len(found), "trial")
    if found:
        text += f", best {words.loss(min(found))}, median {words.loss(median(found))}"
    if early:
        text += f" after {words.count(early[0].steps, 'step')}"
        text += f"; best of {len(complete)} complete {words.loss(min(losses(complete)))}" if complete else ""
    spreads = [spread(f"trial {number}", repeats, scale, "repeat") for number in record.leaders
               if (repeats := [o for o in record.repeats if o.number == number and o.method == method])]
    spreads += [spread("reference", record.references.get(method, ()), scale, "reference")]
    return Strip(method, look, text, marks, scale.at(median(found)) if found else None,
                 [one for one in spreads if one is not None])


def jitter(number: int) -> float:
    """A height that spreads neighbours: multiples of the golden ratio, between 20 and 80 percent."""
    return round(20 + 60 * (number * 0.618 % 1), 1)


def spread(title: str, outcomes: Sequence[Outcome], scale: Scale, kind: str) -> Spread | None:
    found = losses(outcomes)
    if not found:
        return None
    text = f"{title} on {words.count(len(found), 'new seed')}: {words.loss(fmean(found))}"
    return Spread(title, scale.at(min(found)), scale.at(fmean(found)), scale.at(max(found)), text, kind)
