"""What a saved adapter answers, or which label it gives."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from finemesh.errors import InputError
from finemesh.tuning.blackbox import Blackbox
from finemesh.tuning.data.batches import encode, question
from finemesh.tuning.data.examples import Dialogue, Example
from finemesh.tuning.evaluation.evaluation import predict_outputs
from finemesh.tuning.evaluation.generation import answers
from finemesh.tuning.methods import METHODS
from finemesh.tuning.models import quieten
from finemesh.tuning.task import Task

ROWS_AT_A_TIME = 64


def predictions(task: Task, method: str, hyperparameters: Mapping[str, Any], folder: Path,
                examples: Sequence[Example]) -> Iterator[str]:
    """One answer (instruct), label (classify) or number (regress) an example, in their order."""
    quieten()
    box = Blackbox(task, look_only=True)
    plug, tuned = METHODS[method], box.loaded(method, folder)
    pad_id, context = int(box.tokenizer.pad_token_id), box.shown()
    for start in range(0, len(examples), ROWS_AT_A_TIME):
        part = examples[start:start + ROWS_AT_A_TIME]
        if task.task == "instruct":
            asked = [question(example, box.tokenizer, task.max_length) for example in part if isinstance(example, Dialogue)]
            for shown in plug.shape(tuned, part, asked, hyperparameters, context, training=False):
                yield from answers(tuned, box.tokenizer, [shown])
            continue
        rows = [encode(example, box.tokenizer, task.max_length, task.task, labels=task.labels) for example in part]
        for example, row in zip(part, rows, strict=True):
            if row is None:
                raise InputError(f"{example.place}: there is no text in this row")
        shaped = plug.shape(tuned, part, [row for row in rows if row], hyperparameters, context, training=False)
        with torch.no_grad():
            outputs = predict_outputs(tuned, shaped, pad_id, box.device)
        for output in outputs:
            yield task.labels[max(range(len(output)), key=output.__getitem__)] if task.labels else f"{output[0]:.6g}"
