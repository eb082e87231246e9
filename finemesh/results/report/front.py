"""The front of several objectives: the validation loss against each of the others, and the trials on it."""

from collections.abc import Mapping
from dataclasses import dataclass

from finemesh.objectives import LOSS, value
from finemesh.results import words
from finemesh.results.record import Record
from finemesh.results.report.charts import Chart, Line, Mark, Scale, Tick, beyond, loss_scale, path

LOGARITHMIC = 20  # where the largest value is so many times the smallest


@dataclass(frozen=True)
class OnFront:
    number: int
    winner: bool
    cells: tuple[str, ...]  # method, settings, the objectives


def charts(record: Record, looks: Mapping[str, str]) -> list[Chart]:
    """None where there is one objective, or nothing to draw."""
    others = [name for name in record.objectives if name != LOSS]
    return [chart(record, name, looks) for name in others if record.front]


def chart(record: Record, name: str, looks: Mapping[str, str]) -> Chart:
    """The front is joined by a line where no other objective hides behind it."""
    known = {o.number: (o, x) for o in record.scored if (x := value(o, name)) is not None}
    amounts = [x for _, x in known.values()]
    low, high = min(amounts), max(amounts)
    log = low > 0 and high / low > LOGARITHMIC
    margin = 0.03 * (high - low) or 0.05 * abs(low) or 0.5
    across = Scale(low / 1.1, high * 1.1, log=True) if log else Scale(low - margin, high + margin)
    losses = [o.validation_loss or 0.0 for o, _ in known.values()]
    up, front = loss_scale(losses), [outcome.number for outcome in record.front]
    winner = (record.winner or {}).get("number", front[0])
    marks = []
    for number in sorted(known, key=lambda number: (number == winner, number in front)):  # what is drawn last is above
        outcome, amount = known[number]
        kind = "winner" if number == winner else "" if number in front else "dominated"
        marks.append(Mark(across.at(amount), 100 - up.at(outcome.validation_loss or 0.0), looks[outcome.method], kind, number))
    places = sorted((known[number][1], known[number][0].validation_loss or 0.0) for number in front)
    stairs = [point for (x, loss), (_, former) in zip(places, [places[0], *places], strict=False)
              for point in ((across.at(x), 100 - up.at(former)), (across.at(x), 100 - up.at(loss)))]
    lines = [Line(path(stairs), "plain", "best")] if len(record.objectives) == 2 else []
    said = f"Validation loss against {words.name(name)} of {words.count(len(known), 'trial')}, {len(front)} on the front."
    return Chart(said, words.name(name), f"validation loss, {words.UNITS.get(record.task, '')}", across.ticks(),
                 [Tick(100 - tick.at, tick.text) for tick in up.ticks()], lines, marks, (), beyond(losses, up))


def table(record: Record) -> list[OnFront]:
    winner = (record.winner or {}).get("number")
    return [OnFront(o.number, o.number == winner, (o.method, words.settings(o.hyperparameters),
                                                   *(words.objective(name, value(o, name)) for name in record.objectives)))
            for o in record.front]
