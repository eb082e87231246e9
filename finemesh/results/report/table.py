"""The report's lists: the test results with their intervals, the table of trials, data, machine and commands."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finemesh.results import words
from finemesh.results.record import Record, Row
from finemesh.results.report.charts import Scale, Tick, loss_scale
from finemesh.results.report.history import kind as kind_of
from finemesh.trial import Outcome

COLUMNS = (("number", "trial", "num"), ("state", "state", ""), ("method", "method", ""),
           ("settings", "settings", "wide"), ("loss", "loss", "num"), ("seconds", "seconds", "num"),
           ("memory", "memory MB", "num"), ("trainable", "trained parameters", "num"), ("adapter", "adapter MB", "num"))


@dataclass(frozen=True)
class Drawn:
    """A row of the results with its interval in percent of the track."""

    row: Row
    look: str
    low: float | None
    mean: float | None
    high: float | None
    loss: str
    interval: str
    metrics: str


@dataclass(frozen=True)
class Cell:
    title: str
    kind: str
    text: str
    value: Any = ""  # what the table sorts by; "" is unknown
    note: str = ""


@dataclass(frozen=True)
class TableRow:
    number: int
    kind: str
    cells: tuple[Cell, ...]


def results(record: Record, looks: Mapping[str, str]) -> tuple[list[Drawn], list[Tick]]:
    rows = record.rows()
    ends = [row.result.get(end) for row in rows for end in ("low", "loss", "high")]
    scale = loss_scale(end for end in ends if end is not None)
    return [drawn(row, looks.get(row.method or "", "plain circle"), scale) for row in rows], scale.ticks()


def band(rows: list[Drawn]) -> tuple[float, float] | None:
    """The winner's interval, to be seen behind all rows."""
    return next(((row.low, row.high) for row in rows
                 if row.row.kind == "winner" and row.low is not None and row.high is not None), None)


def drawn(row: Row, look: str, scale: Scale) -> Drawn:
    low, high = (row.result.get(end) for end in ("low", "high"))
    at = None if row.loss is None else scale.at(row.loss)
    return Drawn(row, look, at if low is None else scale.at(low), at, at if high is None else scale.at(high),
                 words.loss(row.loss), words.interval(row.result) or row.result.get("error") or "not measured",
                 words.metrics(row.result.get("metrics")))


@dataclass(frozen=True)
class Leader:
    """`best` is the probability that no other leader is better."""

    name: str
    look: str
    best: float
    text: str


def leaders(record: Record, looks: Mapping[str, str]) -> list[Leader]:
    """Those that were repeated, best first; none where there is but one."""
    found = (record.noise or {}).get("leaders", [])
    return [Leader(f"{one['method']}, trial {one['number']}", looks[one["method"]], one["best"],
                   f"{words.loss(one['expected_loss'])} for trial {one['number']} ({words.count(one['runs'], 'run')})")
            for one in found if len(found) > 1]


def table(record: Record) -> list[TableRow]:
    winner = (record.winner or {}).get("number")
    return [TableRow(outcome.number, kind_of(outcome, winner), cells(outcome, winner)) for outcome in record.outcomes]


def cells(outcome: Outcome, winner: Any) -> tuple[Cell, ...]:
    state = "winner" if outcome.number == winner else "duplicate" if outcome.duplicate_of is not None else outcome.state
    note = outcome.error or (f"stopped after {words.count(outcome.steps, 'step')}" if outcome.state == "pruned" else "")
    if outcome.duplicate_of is not None:
        note = f"the same settings as trial {outcome.duplicate_of}, whose outcome it has"
    loss = outcome.validation_loss
    values = ((str(outcome.number), outcome.number, ""), (state, state, ""), (outcome.method, outcome.method, ""),
              (words.settings(outcome.hyperparameters), words.settings(outcome.hyperparameters), note),
              (words.loss(loss) if loss is not None else "", loss, ""), amount(outcome.seconds),
              amount(outcome.peak_memory_mb), amount(outcome.trainable_parameters), amount(outcome.adapter_mb, 1))
    return tuple(Cell(title, kind, text, "" if value is None else value, note)
                 for (_, title, kind), (text, value, note) in zip(COLUMNS, values, strict=True))


def amount(value: float | None, digits: int = 0) -> tuple[str, float | None, str]:
    return ("" if value is None else f"{value:,.{digits}f}", value, "")


def facts(record: Record) -> list[tuple[str, str]]:
    """The tiles under the heading."""
    found = []
    rows = {row.kind: row for row in record.rows()}
    for kind, title in (("untuned", "untuned test loss"), ("winner", "winner's test loss")):
        if kind in rows:
            found.append((title, words.loss(rows[kind].loss)))
            accuracy = (rows[kind].result.get("metrics") or {}).get("accuracy")
            if accuracy is not None:
                found.append((f"{kind} accuracy", words.metric("accuracy", accuracy)))
    if not rows and record.best is not None:
        found.append(("best validation loss", words.loss(record.best.validation_loss)))
    bad = sum(outcome.state == "failed" for outcome in record.trials)
    pruned = sum(outcome.state == "pruned" for outcome in record.trials)
    apart = ", ".join(f"{count} {state}" for count, state in ((bad, "failed"), (pruned, "pruned")) if count)
    found.append(("trials", f"{len(record.trials)}" + (f" ({apart})" if apart else "")))
    if record.trained_tokens:
        found.append(("trained tokens", f"{record.trained_tokens:,}"))
    found.append(("methods", str(len(record.methods))))
    return [*found, ("time", words.duration(record.seconds))] if record.seconds else found


def counts(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in rows.items() if count)


def about(record: Record) -> list[tuple[str, str]]:
    """Data, settings, machine, versions: what has a value."""
    splits, machine, search = record.splits, record.machine, record.settings
    precision = machine.get("precision")
    pairs = (
        ("model", record.config.get("model")), ("task", record.task),
        ("data", (record.config.get("data") or {}).get("train")), ("format", splits.get("format")),
        ("tasks", "; ".join(f"{name}, {task['cluster']}: {counts(task['rows'])}"
                            for name, task in (splits.get("tasks") or {}).items())),
        ("rows", counts(splits.get("rows") or {})),
        ("duplicates left out", splits.get("duplicates")), ("rows without a scored token", splits.get("dropped")),
        ("notes", " ".join(splits.get("notes") or [])), ("data hash", splits.get("data_hash")),
        ("optimizer", search.get("optimizer")), ("fidelity", search.get("fidelity")),
        ("constraints", words.foresight(record.foresight)), ("warm start from", ", ".join(search.get("from") or [])),
        ("steps of a trial", search.get("steps")), ("seed", search.get("seed")),
        ("precision", precision.get("name") if isinstance(precision, dict) else precision),
        ("processor", machine.get("processor")), ("graphics processors", ", ".join(machine.get("gpus") or [])),
        ("cores", machine.get("cores")), ("threads", machine.get("threads")),
        ("memory in GB", machine.get("memory_gb")),
        ("system", machine.get("system")), ("python", machine.get("python")),
        ("versions", ", ".join(f"{name} {version}" for name, version in (machine.get("versions") or {}).items())))
    return [(title, str(value)) for title, value in pairs if value not in (None, "")]
