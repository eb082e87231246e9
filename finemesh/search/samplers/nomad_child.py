"""The process in which NOMAD runs: JSON lines in, JSON lines out. Imports neither torch nor optuna.

NOMAD is a guest here that may print on file descriptor 1, take over signals, keep state from one call to the next, or
crash. So every request is answered by a fork of its own with a fixed seed: each answer is a function of its request
alone, and a crash costs that answer only. The process ends with its parent (end of standard input).

Requests: {"id", "seed", "parameters": [lines], "cache": [[x, outputs], ...]} is answered by {"id", "points": [x, ...]}
(NOMAD's search and poll points of the next iteration); with "points": [[x, outputs], ...] these are observed and the
answer is {"id", "parameters": [lines]}, the changed frame size and barrier. For several objectives, with "starts":
[[x, outputs], ...] and "blocks": [[outputs or null, ...], ...] in place of "cache", a whole run is repeated and the answer
holds the points of its next block, none where it has ended. A failure is {"id", "error": text}.
"""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

BLOCK = 1000  # points, as many as no iteration has: it asks for all of them at once
SECONDS = 120  # of processor time for one answer; a usual one takes 0.05
Request = dict[str, Any]


def cache_text(cache: list[list[list[float]]], output_types: str) -> str:
    """NOMAD's cache file; `cache` holds [x, outputs] pairs. NOMAD 4.6 does not read the last line: it stands there twice."""
    lines = [f"( {_numbers(x)} ) EVAL_OK ( {_numbers(outputs)} )" for x, outputs in cache]
    return "\n".join(["CACHE_HITS 0", f"BB_OUTPUT_TYPE {output_types}", *lines, *lines[-1:], ""])


def _numbers(values: list[float]) -> str:
    return " ".join(repr(float(value)) for value in values)


def replayed(request: Request, folder: Path) -> Request:
    """NOMAD begins with the starting points, its blocks are answered in turn; null is a point that was not evaluated."""
    import PyNomad

    starts, blocks = {tuple(x): outputs for x, outputs in request["starts"]}, iter(request["blocks"])
    asked: list[list[float]] = []
    path = folder / f"starts-{os.getpid()}.txt"
    path.write_text("".join(f"{_numbers(list(x))}\n" for x in starts), encoding="ascii")

    def evaluate(block: Any) -> list[int]:
        points = [block.get_x(index) for index in range(block.size())]
        xs = [[0.0 + point.get_coord(index) for index in range(point.size())] for point in points]  # 0.0: not -0.0
        known = [starts.get(tuple(x)) for x in xs]
        answers = known if None not in known else next(blocks, None)
        if answers is None:
            asked.extend([] if asked else xs)
            answers = [None] * len(xs)
        for point, outputs in zip(points, answers, strict=True):
            if outputs is not None:
                point.setBBO(_numbers(outputs).encode())
        return [int(outputs is not None) for outputs in answers]

    lines = [*request["parameters"], f"X0 {path}", f"SEED {request['seed']}", f"BB_MAX_BLOCK_SIZE {BLOCK}",
             f"MAX_BLOCK_EVAL {len(request['blocks']) + 2}", "DISPLAY_DEGREE 0"]
    try:
        PyNomad.optimize(evaluate, [], [], [], lines)
        return {"points": asked}
    finally:
        path.unlink(missing_ok=True)


def answer(request: Request, folder: Path) -> Request:
    if "starts" in request:
        return replayed(request, folder)
    import PyNomad

    path = folder / f"cache-{os.getpid()}.txt"
    lines = [*request["parameters"], f"CACHE_FILE {path}", "MEGA_SEARCH_POLL yes", "DISPLAY_DEGREE 0"]
    output_types = next(line for line in lines if line.startswith("BB_OUTPUT_TYPE")).removeprefix("BB_OUTPUT_TYPE ")
    path.write_text(cache_text(request["cache"], output_types), encoding="ascii")
    try:
        PyNomad.setSeed(request["seed"])
        if "points" not in request:
            return {"points": [list(point) for point in PyNomad.suggest(lines)]}
        xs = [x for x, _ in request["points"]]
        outputs = [values for _, values in request["points"]]
        changed = PyNomad.observe(lines, xs, outputs, "")
        return {"parameters": [line.decode() if isinstance(line, bytes) else line for line in changed]}
    finally:
        path.unlink(missing_ok=True)


def forked(work: Callable[[], Request]) -> Request:
    """What `work` returns, from a fork of this process: its crash, hang or exception is an answer with "error"."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _answer_and_exit(work, writing)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    if status != 0 or not text:
        return {"error": f"NOMAD ended with status {status}"}
    answered: Request = json.loads(text)
    return answered


def _answer_and_exit(work: Callable[[], Request], writing: int) -> None:
    import resource

    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            result = work()
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        with os.fdopen(writing, "w", encoding="utf-8") as pipe:
            json.dump(result, pipe)
        status = 0
    finally:
        os._exit(status)


def serve(requests: TextIO, answers: TextIO) -> None:
    def say(message: Request) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        import PyNomad
    except ImportError as error:
        say({"refused": f"{error}"})
        return
    say({"ready": PyNomad.__name__})
    with tempfile.TemporaryDirectory(prefix="finemesh-nomad-") as folder:
        for line in requests:
            request = json.loads(line)
            say({"id": request["id"], **forked(lambda request=request: answer(request, Path(folder)))})  # type: ignore[misc]


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever NOMAD prints goes to standard error
    try:
        serve(sys.stdin, answers)
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
