import io
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from finemesh.results.live import Display, Progress, live
from finemesh.search.observer import Observer
from finemesh.trial import Job, Outcome

LORA = {"learning_rate": 1e-3, "rank": 8, "dropout": 0.05, "targets": "all_linear"}


def job(number: int, folder: str = "trials", seed: int = 0) -> Job:
    return Job(number, "lora", LORA, seed, 20, Path("runs/demo", folder, f"{number:04d}"))


def ended(number: int, loss: float | None = 2.0, state: str = "complete", **more: object) -> Outcome:
    return Outcome(number, state, more.pop("method", "lora"), LORA, more.pop("seed", 0), 20, loss,  # type: ignore[arg-type]
                   seconds=21.0, **more)  # type: ignore[arg-type]


def plain(**options: Any) -> tuple[AbstractContextManager[Observer], io.StringIO]:
    stream = io.StringIO()
    return live(Console(file=stream, width=60), **options), stream


def test_without_a_terminal_a_line_a_trial() -> None:
    watched, stream = plain(trials=4)
    with watched as observer:
        observer.phase("search", 4)
        for outcome in (ended(0), ended(1, 1.5), ended(2, None, "failed", error="ValueError: no\nsuch layer"),
                        ended(3, 1.5, duplicate_of=1)):
            observer.started(job(outcome.number))
            observer.progress(outcome.number, {"step": 1, "train_loss": 2.0})
            observer.ended(outcome)
        observer.message("the mesh has converged")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "== search: 4 trials"
    assert lines[1].startswith("[1/4] trial 0  lora (learning rate 1e-3, rank 8,")
    assert "loss 1.500, 21 s  <- best so far" in lines[2]
    assert "failed, ValueError: no such layer" in lines[3]
    assert "same settings as trial 1, loss 1.500" in lines[4]
    assert "[3/4]" in lines[4]  # a copy is not of the trials asked for
    assert lines[5] == "the mesh has converged"
    assert len(lines) == 6


def test_phases_after_the_search_count_from_nothing_and_name_seeds() -> None:
    watched, stream = plain(trials=2)
    with watched as observer:
        observer.ended(ended(0))
        observer.phase("leaders and references", 2)
        observer.started(job(0, "repeats", seed=1))
        observer.started(job(0, "repeats", seed=2))
        observer.ended(ended(0, 1.0, seed=2))
        observer.started(job(-1, "reference", seed=1))
        observer.ended(ended(-1, 1.2, seed=1))
    lines = stream.getvalue().splitlines()
    assert lines[1] == "== leaders and references: 2 runs"
    assert "[1/2] trial 0 on seed 2" in lines[2]
    assert "best" not in lines[2]
    assert "[2/2] reference on seed 1" in lines[3]


def test_a_resumed_search_goes_on_counting_and_knows_its_best() -> None:
    earlier = [ended(0, 1.2), ended(1, 1.2, duplicate_of=0), ended(2, 1.4)]
    watched, stream = plain(trials=4, earlier=earlier)
    with watched as observer:
        observer.phase("search", 4)
        observer.ended(ended(3, 1.3))
    line = stream.getvalue().splitlines()[1]
    assert "[3/4] trial 3" in line
    assert "best so far" not in line


def test_a_trial_that_a_kill_left_untold_counts_once() -> None:
    watched, stream = plain(trials=4, earlier=[ended(0, 1.2), ended(1, 1.3), ended(2, 1.4)])
    with watched as observer:
        observer.phase("search", 4)
        for outcome in (ended(1, 1.3), ended(2, 1.4), ended(3, 1.1), ended(3, 1.1)):
            observer.ended(outcome)
    assert [line.partition("  ")[0] for line in stream.getvalue().splitlines()[1:]] == [
        "[3/4] trial 1", "[3/4] trial 2", "[4/4] trial 3", "[4/4] trial 3"]
    now = [0.0]
    progress = Progress(10, [ended(0, None, "failed")], clock=lambda: now[0])
    for number, second in ((0, 1.0), (1, 30.0)):
        now[0] = second
        progress.end(ended(number, None, "failed"))
    assert progress.states["failed"] == 2
    assert progress.seconds_left() == pytest.approx(8 * 30)  # a trial of an earlier run tells nothing of the pace


def test_points_that_are_not_started_take_one_line_in_all() -> None:
    watched, stream = plain(trials=4)
    with watched as observer:
        observer.phase("search", 4)
        for number in range(3):
            observer.ended(ended(number, None, "infeasible", error="too many", started=False))
    assert stream.getvalue().count("infeasible, too many. It is not started, nor is what follows like it.") == 1
    assert len(stream.getvalue().splitlines()) == 2
    progress = Progress(4)
    progress.end(ended(0, None, "infeasible", started=False))
    assert progress.done == 0


def test_infeasible_is_never_best() -> None:
    progress = Progress(3)
    assert not progress.end(ended(0, 0.5, "infeasible"))
    assert progress.end(ended(1, 1.5))


def test_time_left_is_the_pace_of_this_phase() -> None:
    now = [0.0]
    progress = Progress(10, map(ended, range(4)), clock=lambda: now[0])
    assert progress.seconds_left() is None
    for number, second in ((4, 30.0), (5, 60.0)):
        now[0] = second
        progress.end(ended(number))
    assert progress.seconds_left() == pytest.approx(4 * 30)
    now[0] = 70.0
    assert progress.seconds_left() == pytest.approx(4 * 30 - 10)


def test_a_search_goes_on_no_longer_than_its_hours() -> None:
    now = [0.0]
    progress = Progress(1000, clock=lambda: now[0], search_left=lambda: 600.0)
    now[0] = 20.0  # of preparation
    progress.enter("search", 1000)
    now[0] = 50.0
    progress.end(ended(0))
    assert progress.seconds_left() == pytest.approx(570)
    now[0] = 700.0
    assert progress.seconds_left() == 0
    progress.enter("leaders and references", 30)
    now[0] = 740.0
    progress.end(ended(0, seed=1))
    assert progress.seconds_left() == pytest.approx(29 * 40)


def shown(display: Display, width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None, force_terminal=True, _environ={"TERM": "xterm"}).print(display)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).splitlines()


@pytest.mark.parametrize("width", [80, 40, 20])
def test_the_display_fits_and_keeps_its_height(width: int) -> None:
    display = Display(Console(), Progress(12))
    heights = set()
    display.ended(ended(0, 1.71))
    for number in (1, 2):
        display.started(job(number))
        for step in range(20):
            display.progress(number, {"step": step, "train_loss": 2.0 - step / 40, "validation_loss": None})
            lines = shown(display, width)
            assert max(map(len, lines)) <= width
            heights.add(len(lines))
        display.ended(ended(number, 1.6 + number))
        heights.add(len(shown(display, width)))
    assert len(heights) == 1


def test_the_display_says_where_the_search_is() -> None:
    display = Display(Console(), Progress(12))
    display.ended(ended(0, 1.71))
    display.ended(ended(1, None, "failed"))
    display.ended(ended(2, 1.9, method="prompt"))
    display.started(job(3))
    assert "preparing: the model is loaded" in "\n".join(shown(display, 100))
    for step, loss in ((0, 2.6), (10, 2.1), (20, 1.8)):
        display.progress(3, {"step": step, "train_loss": loss, "validation_loss": loss})
    text = "\n".join(shown(display, 100))
    for part in ("search", "3/12", "1.710", "trial 0", "lora 1.710  prompt 1.900", "1 failed", "trial 3",
                 "step 20/20", "2.600 → 1.800", "█"):
        assert part in text


def test_progress_of_repeats_with_one_number_goes_to_the_run_that_it_continues() -> None:
    progress = Progress(3)
    progress.enter("leaders and references", 3)
    for seed in (1, 2, 3):
        progress.start(job(7, "repeats", seed))
    assert [run.job.seed for run in progress.begun()] == [1]
    for step in (0, 0, 1, 1):
        progress.follow(7, {"step": step, "train_loss": 2.0})
    assert {run.job.seed: run.step for run in progress.begun()} == {1: 1, 2: 1}
    progress.end(ended(7, 1.0, seed=1))
    assert [run.job.seed for run in progress.begun()] == [2]


def test_on_a_terminal_messages_stay_and_the_display_goes() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    with live(console, trials=2) as observer:
        observer.phase("search", 2)
        observer.started(job(0))
        observer.message("worth knowing")
        observer.ended(ended(0))
        observer.phase("leaders and references", 1)
    assert "worth knowing" in stream.getvalue()
    assert "search: 1 of 2 done" in stream.getvalue()
