"""A worker without a model: the loss is a function of the point, and trials do what a script file tells them.

The script: {"seconds": of a step, "whole": steps of a whole trial, "die": {"trial number": times}, "until": {"trial number":
another that it waits for}, "noise": deviation of the loss from seed to seed, "refuse": message, "broken": true, "no_test":
true} and lists of trial numbers: slow, fail, error, infeasible (no loss), heavy (a loss, yet infeasible), pruned, full (the
disk), hang. Checkpoints are written as a real trial writes them.
"""

import json
import math
import os
import random
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from finemesh.trial import Job, Outcome, write_outcome


def main() -> None:
    script = json.loads(Path(sys.argv[1]).read_text())
    lines: list[str] = []
    arrived = threading.Condition()
    threading.Thread(target=listen, args=(lines, arrived), daemon=True).start()
    if script.get("broken"):
        sys.exit("Traceback: the model is not what it seems")
    if "refuse" in script:
        say({"refused": script["refuse"]})
        return
    say({"ready": {"pid": os.getpid(), "device": os.environ.get("CUDA_VISIBLE_DEVICES")}})
    while True:
        with arrived:
            arrived.wait_for(lambda: lines)
            request = json.loads(lines.pop(0))
        answer(request, script)


def listen(lines: list[str], arrived: threading.Condition) -> None:
    for line in sys.stdin:
        with arrived:
            lines.append(line)
            arrived.notify()
    os._exit(0)


def answer(request: dict[str, Any], script: dict[str, Any]) -> None:
    try:
        say({"id": request["id"], "result": done(request, script)})
    except Exception as error:
        say({"id": request["id"], "error": f"{type(error).__name__}: {error}"})


def done(request: dict[str, Any], script: dict[str, Any]) -> Any:
    arguments = request["arguments"]
    if request["kind"] == "tune":
        job = Job.from_json(arguments)
        if job.number in script.get("error", []):
            raise RuntimeError("out of luck")
        return tune(job, script, request["id"]).to_json()
    if request["kind"] == "evaluate":
        return evaluate(arguments, script)
    return [{"prompt": f"p{n}", "reference": "r", "before": "b", "after": "a"} for n in range(arguments["rows"])]


def tune(job: Job, script: dict[str, Any], request: int) -> Outcome:
    job.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = job.folder / "checkpoint.safetensors"
    start = json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0
    if job.number in script.get("hang", []):
        time.sleep(1e6)
    whole = script.get("whole", job.steps)
    outcome = Outcome(job.number, "complete" if job.steps >= whole else "pruned", job.method, job.hyperparameters, job.seed,
                      job.steps, validation_loss=(loss(job) + noise(job, script)) * whole / job.steps, scored_tokens=100,
                      trained_tokens=10 * job.steps, peak_memory_mb=job.hyperparameters.get("rank", 30),
                      continues=job.continues, foreseen=job.foreseen)
    base = Outcome(job.number, "failed", job.method, job.hyperparameters, job.seed, continues=job.continues,
                   foreseen=job.foreseen)
    if job.number in script.get("fail", []):
        outcome = replace(base, error="ValueError: NaN")
    if job.number in script.get("infeasible", []):
        outcome = replace(base, state="infeasible", constraints={"trainable_parameters": 5.0}, error="too many")
    if job.number in script.get("heavy", []):
        outcome = replace(outcome, state="infeasible", constraints={"adapter_mb": 2.0})
    if job.number in script.get("pruned", []):
        outcome = replace(outcome, state="pruned")
    if job.number in script.get("full", []):
        outcome = replace(outcome, state="failed", error="OSError: [Errno 28] No space left on device: 'adapter'")
    slowness = 10 if job.number in script.get("slow", []) else 1
    awaited = script.get("until", {}).get(str(job.number)) if job.folder.parent.name == "trials" else None
    give_up = time.monotonic() + 10
    while awaited and time.monotonic() < give_up and not (job.folder.parent / f"{awaited:04d}").exists():
        time.sleep(0.005)
    for step in range(start, job.steps):
        with open(job.folder / "steps.log", "a", encoding="utf-8") as log:
            log.write(f"{step}\n")
        time.sleep(script.get("seconds", 0.0) * slowness)
        if step == job.steps // 2:
            die(job, script)
        unfinished = checkpoint.with_suffix(".new")
        unfinished.write_text(json.dumps({"step": step + 1}))
        unfinished.replace(checkpoint)
        say({"id": request, "progress": {"step": step + 1, "validation_loss": loss(job)}})
    write_outcome(job.folder, outcome)
    return outcome


def die(job: Job, script: dict[str, Any]) -> None:
    deaths = job.folder / "deaths"
    died = int(deaths.read_text()) if deaths.exists() else 0
    if died < script.get("die", {}).get(str(job.number), 0):
        deaths.write_text(str(died + 1))
        print(f"about to die in trial {job.number}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def loss(job: Job) -> float:
    point = job.hyperparameters
    return round((math.log10(point["learning_rate"]) + 3) ** 2 + point.get("rank", 30) / 100 + 0.001 * job.seed, 6)


def noise(job: Job, script: dict[str, Any]) -> float:
    return random.Random(f"{job.number} {job.seed}").gauss(0.0, script.get("noise", 0.0))


def evaluate(arguments: dict[str, Any], script: dict[str, Any]) -> dict[str, Any]:
    if arguments["folder"] is None:
        base = 3.0
    else:
        with open(Path(arguments["folder"]) / "evaluations.log", "a", encoding="utf-8") as log:
            log.write("once\n")
        base = json.loads((Path(arguments["folder"]) / "outcome.json").read_text())["validation_loss"]
    if script.get("no_test"):
        raise OSError("the test split is gone")
    losses = [base + 0.1 * math.sin(row) for row in range(40)]
    return {"loss": sum(losses) / 40, "row_losses": losses, "row_weights": [5] * 40, "metrics": {"accuracy": 0.5}}


def say(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    main()
