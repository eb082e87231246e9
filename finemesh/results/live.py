"""A search while it runs: a live display on a terminal, plain lines anywhere else. Both draw the same Progress.

The display keeps its height (every line is cut, never wrapped), so that it does not flicker or jump.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from finemesh.results import words
from finemesh.trial import Job, Outcome


class Observer(Protocol):
    """What a study tells whoever watches it."""

    def started(self, job: Job) -> None: ...
    def progress(self, number: int, line: Mapping[str, Any]) -> None: ...
    def ended(self, outcome: Outcome) -> None: ...
    def message(self, text: str) -> None: ...
    def phase(self, name: str, total: int) -> None: ...


@dataclass
class Running:
    """A run in flight and its curve so far."""

    job: Job
    step: int = -1  # not begun
    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)

    def add(self, line: Mapping[str, Any]) -> None:
        self.step = line.get("step", self.step)
        for values, key in ((self.train, "train_loss"), (self.validation, "validation_loss")):
            if line.get(key) is not None:
                values.append(line[key])


class Progress:
    """What is known so far, gathered from the observed events."""

    def __init__(self, trials: int, earlier: Iterable[Outcome] = (), clock: Callable[[], float] = time.monotonic,
                 search_left: Callable[[], float] = lambda: math.inf) -> None:
        """`search_left`: the seconds that the search may yet take, asked when it begins."""
        self.trials, self.clock, self.search_left = trials, clock, search_left
        self.phase, self.total, self.done = "search", trials, 0
        self.running: dict[tuple[int, int], Running] = {}  # by number and seed: a leader's repeats share its number
        self.states: Counter[str] = Counter()
        self.best: Outcome | None = None
        self.by_method: dict[str, float] = {}
        self.since = self.last = clock()
        self.ended_here = 0
        self.until = math.inf
        self.known: set[int] = set()  # trials of the search; it tells again of those that it did not hear of before a kill
        for outcome in earlier:
            self.keep(outcome)

    def enter(self, phase: str, total: int) -> None:
        """The total of the search is its trials, with those of an earlier run; other phases begin at 0."""
        if phase != "search":
            self.total, self.done, self.ended_here = total, 0, 0
            self.since = self.last = self.clock()
        self.until = self.clock() + self.search_left() if phase == "search" else math.inf
        self.phase = phase

    def start(self, job: Job) -> None:
        """It is given to the workers, which may be busy with others."""
        self.running[job.number, job.seed] = Running(job)

    def follow(self, number: int, line: Mapping[str, Any]) -> None:
        """Of several runs with this number, the line is of the one that it comes next in."""
        runs = [run for run in self.running.values() if run.job.number == number]
        before = [run for run in runs if run.step < line.get("step", 0)]
        if runs:
            max(before or runs, key=lambda run: run.step).add(line)

    def begun(self) -> list[Running]:
        runs = list(self.running.values())
        return [run for run in runs if run.step >= 0] or runs[:1]

    def end(self, outcome: Outcome) -> bool:
        """True where the outcome is the best so far of the search."""
        self.running.pop((outcome.number, outcome.seed), None)
        if self.phase == "search" and outcome.number in self.known:
            return False
        self.ended_here, self.last = self.ended_here + 1, self.clock()
        if self.phase == "search":
            return self.keep(outcome)
        self.done += 1
        return False

    def keep(self, outcome: Outcome) -> bool:
        self.known.add(outcome.number)
        self.done += outcome.is_new
        self.states[outcome.state] += 1
        self.states["pruned"] -= outcome.continues is not None
        loss = outcome.validation_loss
        if outcome.state != "complete" or loss is None:
            return False
        self.by_method[outcome.method] = min(loss, self.by_method.get(outcome.method, loss))
        if self.best is None or self.best.validation_loss is None or loss < self.best.validation_loss:
            self.best = outcome
            return True
        return False

    def seconds_left(self) -> float | None:
        """From the pace of what ended in this phase, time between runs included; None before the first end.

        A search does not go on beyond its hours.
        """
        if not self.ended_here or self.last == self.since:
            return None
        pace = (self.last - self.since) / self.ended_here
        now = self.clock()
        return max(0.0, min(pace * (self.total - self.done) - (now - self.last), self.until - now))


def label(job: Job) -> str:
    """Told by the folder: trials/0007, repeats/0007-1, reference/lora-1."""
    match job.folder.parent.name:
        case "repeats":
            return f"trial {job.number} on seed {job.seed}"
        case "reference":
            return f"reference on seed {job.seed}"
    return f"trial {job.number}" + ("" if job.continues is None else f", {job.continues} continued")


def summary_of(outcome: Outcome, is_best: bool) -> str:
    text = f"{outcome.method} ({words.settings(outcome.hyperparameters)})"
    if outcome.duplicate_of is not None:
        return f"{text}: same settings as trial {outcome.duplicate_of}, loss {words.loss(outcome.validation_loss)}"
    if outcome.state in ("failed", "infeasible"):
        return f"{text}: {outcome.state}, {outcome.error or 'no reason given'}".replace("\n", " ")
    pruned = f" after {words.count(outcome.steps, 'step')}, pruned" if outcome.state == "pruned" else ""
    text += f": loss {words.loss(outcome.validation_loss)}{pruned}"
    return f"{text}, {words.duration(outcome.seconds)}" + ("  <- best so far" if is_best else "")


class Plain:
    """One line a run that ends, one a phase."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self.console, self.state, self.skipped = console, progress, False

    def started(self, job: Job) -> None:
        self.state.start(job)

    def progress(self, number: int, line: Mapping[str, Any]) -> None:
        pass

    def ended(self, outcome: Outcome) -> None:
        run = self.state.running.get((outcome.number, outcome.seed))
        name = label(run.job) if run else f"trial {outcome.number}"
        best = self.state.end(outcome)
        if not outcome.started:
            if not self.skipped:
                self.message(f"{summary_of(outcome, best)}. It is not started, nor is what follows like it.")
            self.skipped = True
            return
        self.message(f"[{self.state.done}/{self.state.total}] {name}  {summary_of(outcome, best)}")

    def message(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)

    def phase(self, name: str, total: int) -> None:
        self.state.enter(name, total)
        self.message(f"== {name}: {words.count(self.state.total, 'trial' if name == 'search' else 'run')}")


class Display:
    """The live display; rich calls __rich_console__ four times a second."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self.console, self.state = console, progress
        self.height = 0

    def started(self, job: Job) -> None:
        self.state.start(job)

    def progress(self, number: int, line: Mapping[str, Any]) -> None:
        self.state.follow(number, line)

    def ended(self, outcome: Outcome) -> None:
        self.state.end(outcome)

    def message(self, text: str) -> None:
        self.console.print(Text(text))

    def phase(self, name: str, total: int) -> None:
        if name != self.state.phase:
            self.message(f"{self.state.phase}: {self.state.done} of {self.state.total} done")
        self.state.enter(name, total)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        found = [self.best(), self.methods(), self.trouble()] if self.state.trials > 1 else []
        lines = [self.bar(width), *found, *self.runs(width)]
        self.height = max(self.height, len(lines))
        for line in lines + [Text(" ")] * (self.height - len(lines)):
            line.truncate(width, overflow="ellipsis")
            yield line

    def bar(self, width: int) -> Text:
        state = self.state
        left = state.seconds_left()
        time_left = "" if left is None or state.done >= state.total else f"  about {words.duration(left)} left"
        tail = f"  {state.done}/{state.total}{time_left}"
        size = max(4, min(30, width - len(tail) - len(state.phase) - 2))
        full = round(size * state.done / max(1, state.total))
        return Text.assemble((state.phase, "bold"), "  ", ("━" * full, "green"), ("━" * (size - full), "bright_black"),
                             tail)

    def best(self) -> Text:
        best = self.state.best
        if best is None:
            return Text("best     none yet", "bright_black")
        return Text.assemble("best     ", (words.loss(best.validation_loss), "bold green"),
                             f"  trial {best.number}, {best.method} ",
                             (words.settings(best.hyperparameters), "bright_black"))

    def methods(self) -> Text:
        ranked = sorted(self.state.by_method.items(), key=lambda pair: pair[1])
        return Text("methods  " + ("  ".join(f"{name} {words.loss(loss)}" for name, loss in ranked) or "–"))

    def runs(self, width: int) -> Iterator[Text]:
        for run in self.state.begun():
            yield Text.assemble((f"{label(run.job)}  {run.job.method} ", "cyan"),
                                (words.settings(run.job.hyperparameters), "bright_black"))
            curve = run.train if len(run.train) > len(run.validation) else run.validation
            losses = [words.loss(loss) for loss in (run.validation[:1] + run.validation[1:][-1:])]
            if run.step < 0:
                yield Text("  preparing: the model is loaded, or the method put into it", "bright_black")
                continue
            text = f"  step {run.step}/{run.job.steps}  {' → '.join(losses)}  "
            yield Text.assemble(text, (words.spark(curve, min(30, width - len(text))), "cyan"))

    def trouble(self) -> Text:
        counts = [f"{self.state.states[name]} {name}" for name in ("failed", "infeasible", "pruned")
                  if self.state.states[name]]
        return Text("  ".join(counts) or " ", "yellow")


@contextmanager
def live(console: Console | None, *, trials: int, earlier: Iterable[Outcome] = (),
         search_left: Callable[[], float] = lambda: math.inf) -> Iterator[Observer]:
    """An observer that shows the search on `console`, by default standard error.

    `trials` are all trials of the search, `earlier` the outcomes of those that an earlier run of the command ended,
    among which the best so far may be; `search_left` as Progress has it.
    """
    console = Console(stderr=True, highlight=False) if console is None else console
    progress = Progress(trials, earlier, search_left=search_left)
    if not console.is_terminal or console.is_dumb_terminal:
        yield Plain(console, progress)
        return
    display = Display(console, progress)
    with Live(display, console=console, refresh_per_second=4, redirect_stdout=False, transient=True):
        yield display
