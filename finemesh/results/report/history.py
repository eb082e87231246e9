"""The search in its order: each trial's loss and the best so far; and the learning curves of all trials."""

from collections.abc import Mapping

from finemesh.results import words
from finemesh.results.record import Record, losses_along
from finemesh.results.report.charts import Chart, Label, Line, Mark, Scale, Tick, apart, beyond, loss_scale, path
from finemesh.trial import Outcome

LABEL_GAP = 6.0  # percent of a plot's height: one line of text
FAILED = -6.0  # above the plot: there is no loss to place it by


def kind(outcome: Outcome, winner: object) -> str:
    if outcome.duplicate_of is not None:
        return "duplicate"
    return "winner" if outcome.number == winner and outcome.state == "complete" else outcome.state


def history(record: Record, looks: Mapping[str, str]) -> Chart | None:
    """None where no trial has ended."""
    if not record.outcomes:
        return None
    losses = [o.validation_loss for o in record.outcomes if o.validation_loss is not None and o.state != "failed"]
    scale = loss_scale(losses)
    last = max(outcome.number for outcome in record.outcomes)
    across = Scale(-0.5 - 0.01 * last, last + 0.5 + 0.01 * last)
    winner = (record.winner or {}).get("number", record.best.number if record.best else None)
    marks = []
    for outcome in sorted(record.outcomes, key=lambda o: o.number == winner):  # the winner above the others
        lost = outcome.validation_loss is None or outcome.state == "failed"
        height = FAILED if lost else 100 - scale.at(outcome.validation_loss or 0.0)
        mark = Mark(across.at(outcome.number), height, looks[outcome.method], kind(outcome, winner), outcome.number)
        marks.append(mark)
    ticks = [Tick(across.at(value), f"{value:.0f}") for value in whole(last)]
    y_ticks = [Tick(100 - tick.at, tick.text) for tick in scale.ticks() if losses]
    y_ticks += [Tick(FAILED, "failed")] if any(mark.y == FAILED for mark in marks) else []
    best = Line(path(best_so_far(record, across, scale)), "plain", "best") if record.best else None
    said = f"Loss of {words.count(len(record.outcomes), 'trial')} in order."
    if record.best:
        said += f" The best, trial {record.best.number}, reached {words.loss(record.best.validation_loss)}."
    return Chart(said, "trial", f"validation loss, {words.UNITS.get(record.task, '')}", ticks, y_ticks,
                 [best] if best else [], marks, best_label(record, scale), beyond(losses, scale))


def best_label(record: Record, scale: Scale) -> list[Label]:
    loss = record.best.validation_loss if record.best else None
    return [] if loss is None else [Label(100 - scale.at(loss), words.loss(loss), "ink")]


def whole(last: int) -> list[int]:
    step = next((step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if last / step <= 7), 2000)
    return list(range(0, last + 1, step))


def best_so_far(record: Record, across: Scale, scale: Scale) -> list[tuple[float, float]]:
    points: list[tuple[float, float]] = []
    best = float("inf")
    for outcome in sorted(record.scored, key=lambda o: o.number):
        x, loss = across.at(outcome.number), outcome.validation_loss or 0.0
        if loss < best:
            points += [(x, points[-1][1])] if points else []
            points.append((x, 100 - scale.at(loss)))
            best = loss
    return [*points, (100.0, points[-1][1])]


def learning_curves(record: Record, looks: Mapping[str, str]) -> Chart | None:
    """Validation losses along the steps; the leaders bold and named. None where there is no curve."""
    outcomes = {o.number: o for o in record.outcomes if o.state != "failed" and o.duplicate_of is None}
    curves = {number: points for number, curve in record.curves.items()
              if number in outcomes and len(points := list(losses_along(curve).items())) > 1}
    if not curves:
        return None
    losses = [loss for points in curves.values() for _, loss in points]
    scale = loss_scale(losses)
    across = Scale(0, max(points[-1][0] for points in curves.values()))
    lines, labels = [], []
    for number, points in sorted(curves.items(), key=lambda pair: pair[0] in record.leaders):
        outcome, leads = outcomes[number], number in record.leaders
        drawn = [(across.at(step), 100 - scale.at(loss)) for step, loss in points]
        lines.append(Line(path(drawn), looks[outcome.method], "leader" if leads else "faint", number))
        if leads:
            labels.append(Label(drawn[-1][1], f"{outcome.method} {number}", looks[outcome.method]))
    said = f"Validation loss along training for {words.count(len(curves), 'trial')}; " \
           f"the leaders are {', '.join(label.text for label in labels) or 'not known yet'}."
    return Chart(said, "optimizer step", f"validation loss, {words.UNITS.get(record.task, '')}", across.ticks(6),
                 [Tick(100 - tick.at, tick.text) for tick in scale.ticks()], lines, (), apart(labels, LABEL_GAP),
                 beyond(losses, scale))
