"""A worker process: `python -m finemesh.tuning.worker task.json`. Requests come as JSON lines on standard input, replies go
out as JSON lines on what was standard output; everything else that is printed goes to standard error.

It ends at once when its input ends, so that it never outlives the process that started it.
"""

import gc
import json
import os
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from finemesh.errors import InputError
from finemesh.trial import Job


def main(task_file: Path) -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever libraries print
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    try:
        blackbox = _open(task_file)
    except InputError as error:
        _say(replies, {"refused": str(error)})
        return
    _say(replies, {"ready": {"base_memory_mb": blackbox.base_memory_mb, "untuned_loss": blackbox.base_validation_loss,
                             "device": str(blackbox.device)}})
    while True:
        request = requests.get()
        number = request["id"]
        try:
            result = _do(blackbox, request["kind"], request["arguments"],
                         lambda line, number=number: _say(replies, {"id": number, "progress": dict(line)}))
        except Exception as error:
            _say(replies, {"id": number, "error": f"{type(error).__name__}: {error}"})
        else:
            _say(replies, {"id": number, "result": result})


def _open(task_file: Path) -> Any:
    from finemesh.tuning.blackbox import Blackbox
    from finemesh.tuning.models import quieten
    from finemesh.tuning.task import Task

    quieten()
    gc.freeze()  # the libraries' half a million objects, which each trial's search for garbage would go through
    return Blackbox(Task.read(task_file))


def _do(blackbox: Any, kind: str, arguments: Mapping[str, Any], report: Any) -> Any:
    if kind == "tune":
        return blackbox.tune(Job.from_json(arguments), report).to_json()
    folder = Path(arguments["folder"]) if arguments.get("folder") else None
    method, point = _tuned_as(folder)
    if kind == "evaluate":
        evaluation = blackbox.evaluate(method, point, folder, arguments["split"])
        return {"loss": evaluation.loss, "row_losses": evaluation.row_losses, "row_weights": evaluation.row_weights,
                "metrics": evaluation.metrics}
    if kind == "answer":
        return blackbox.answer(method, point, folder, arguments["rows"])
    raise ValueError(f"a worker does not do {kind!r}")


def _tuned_as(folder: Path | None) -> tuple[str | None, Mapping[str, Any]]:
    if folder is None:
        return None, {}
    outcome = json.loads((folder / "outcome.json").read_text(encoding="utf-8"))
    return outcome["method"], outcome["hyperparameters"]


def _listen(requests: "queue.Queue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)


def _say(replies: TextIO, document: Mapping[str, Any]) -> None:
    replies.write(json.dumps(document, ensure_ascii=False) + "\n")
    replies.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
