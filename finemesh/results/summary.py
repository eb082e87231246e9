"""The end of a search in the terminal, and `finemesh status`: the same numbers, the same words as in the report."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from finemesh.objectives import value
from finemesh.results import words
from finemesh.results.finding import finding
from finemesh.results.record import Record, Row, read_record

STYLES = {"untuned": "", "reference": "", "winner": "bold green"}
STATES = ("complete", "pruned", "infeasible", "failed")
LONGEST_ANSWER = 600  # characters shown in a terminal


def print_summary(run: Path, console: Console) -> None:
    """What was found: the table of test losses, three answers before and after, where the rest is."""
    record = read_record(run)
    console.print()
    console.print(Text(finding(record), "bold"))
    if record.front:
        console.print()
        console.print(front(record))
    if record.rows():
        console.print()
        console.print(losses(record, console.width))
        console.print(Text(meaning(record), "bright_black"))
    for number, answer in enumerate((record.finish or {}).get("answers", [])[:3], 1):
        print_answer(console, number, answer)
    console.print()
    for title, path in (("report", run / "report.html"), ("winner", run / "best")):
        if path.exists():
            console.print(Text.assemble(f"{title}  ", (f"{path}", "bold")), soft_wrap=True)


def front(record: Record) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("on the front")
    for name in record.objectives:
        table.add_column(words.name(name), justify="right")
    for outcome in record.front:
        table.add_row(f"trial {outcome.number}, {outcome.method}",
                      *(words.objective(name, value(outcome, name)) for name in record.objectives))
    return table


def losses(record: Record, width: int) -> Table:
    """Metrics that have no room for a column of their own are said below the settings."""
    rows = record.rows()
    names = list(dict.fromkeys(name for row in rows for name in row.result.get("metrics") or {}))
    shown, below = names[:max(0, (width - 58) // 11)], names[max(0, (width - 58) // 11):]
    narrow = width < 56
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("model")
    table.add_column("test loss", justify="right", no_wrap=True)
    if not narrow:
        table.add_column("95 % interval", no_wrap=all("error" not in row.result for row in rows), max_width=24)
    for name in shown:
        table.add_column(words.name(name), justify="right", no_wrap=True)
    for row in rows:
        metrics = row.result.get("metrics") or {}
        spread = words.interval(row.result) or row.result.get("error") or "not measured"
        rest = [spread] if narrow else []
        rest.append(words.metrics({name: metrics.get(name) for name in below}))
        details = "\n".join([row.settings, *filter(None, rest)])
        cells = [Text.assemble((row.title, STYLES[row.kind]), "\n", (details, "bright_black")),
                 Text(words.loss(row.loss), STYLES[row.kind])]
        cells += [] if narrow else [Text(spread)]
        cells += [Text("–" if metrics.get(name) is None else words.metric(name, metrics[name])) for name in shown]
        table.add_row(*cells)
    return table


def meaning(record: Record) -> str:
    """What the loss is; for text also how many tokens the model hesitates between."""
    text = words.LOSS_WORDS.get(record.task, words.LOSS_WORDS["instruct"])
    by_kind: dict[str, Row] = {row.kind: row for row in record.rows() if row.loss is not None}
    if record.task == "instruct" and {"winner", "untuned"} <= set(by_kind):
        before, after = (math.exp(min(50.0, by_kind[kind].loss or 0.0)) for kind in ("untuned", "winner"))
        text += f" Here: as unsure of each token as between {before:.1f} equally likely ones before, {after:.1f} after."
    return text


def print_answer(console: Console, number: int, answer: dict[str, Any]) -> None:
    console.print()
    console.print(Text(f"{number}. {shortened(answer.get('prompt'))}", "bold"))
    for title, key, style in (("before", "before", "bright_black"), ("after", "after", "green"),
                              ("in the data", "reference", "bright_black")):
        if answer.get(key) is not None:
            grid = Table.grid(padding=(0, 1))
            grid.add_column(width=11, no_wrap=True)
            grid.add_column()
            grid.add_row(Text(title, style), Text(shortened(answer[key])))
            console.print(Padding(grid, (0, 0, 0, 3)))


def shortened(text: Any) -> str:
    whole = str(text).strip()
    return whole if len(whole) <= LONGEST_ANSWER else whole[:LONGEST_ANSWER] + " …"


def status(run: Path) -> dict[str, Any]:
    """state, trials (state to count), best, test (null until the finish), seconds: what `--json` prints."""
    record = read_record(run)
    counts: Counter[str] = Counter(outcome.state for outcome in record.trials)
    best = record.best and {"number": record.best.number, "method": record.best.method,
                            "hyperparameters": dict(record.best.hyperparameters),
                            "validation_loss": record.best.validation_loss}
    test = record.finish and {key: record.finish.get(key) for key in ("untuned", "reference", "winner")}
    return {"state": record.state, "trials": {state: counts[state] for state in STATES}, "best": best, "test": test,
            "seconds": record.seconds, "trained_tokens": record.trained_tokens, "constraints": record.foresight,
            "transfer": record.transfer or None, "noise": record.noise,
            "front": [{"number": o.number, "method": o.method, "hyperparameters": dict(o.hyperparameters),
                       "objectives": {name: value(o, name) for name in record.objectives}} for o in record.front]}


def print_status(run: Path, console: Console) -> None:
    record = read_record(run)
    counts: Counter[str] = Counter(outcome.state for outcome in record.trials)
    asked = record.settings.get("trials")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column()
    said = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or \
        ("none" if record.outcomes else "none ended yet")
    table.add_row("state", Text(f"{record.state}, after {words.duration(record.seconds)}"))
    table.add_row("trials", Text(said + (f" (of {asked} asked for)" if asked else "")))
    if record.trained_tokens:
        table.add_row("trained", Text(words.count(record.trained_tokens, "token")))
    if foreseen := words.foresight(record.foresight):
        table.add_row("constraints", Text(foreseen))
    if record.transfer:
        table.add_row("warm start", Text(record.transfer["said"]))
    if said := words.leaders(record.noise):
        table.add_row("leaders", Text(said))
    if record.best is not None:
        table.add_row("best", Text(f"trial {record.best.number}: {record.best.method}, "
                                   f"{words.settings(record.best.hyperparameters)}; validation loss "
                                   f"{words.loss(record.best.validation_loss)}"))
    console.print(table)
    if record.front:
        console.print()
        console.print(front(record))
    if record.rows():
        console.print()
        console.print(losses(record, console.width))
