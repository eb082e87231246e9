"""What shows only with the data and the model, as commands say it: file, line and field, status 2, nothing spent."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import XLNetConfig

from finemesh import preparation
from finemesh.cli import main
from finemesh.config import load_config
from finemesh.run import RunFolder
from finemesh.tuning.precision import Precision
from tests import tiny

Captured = pytest.CaptureFixture[str]
CONFIG = """model: {model}
data:
  train: {data}.jsonl
  max_length: {length}
methods:
  {methods}
out: {out}
"""


def refused(capsys: Captured, *command: str | Path) -> str:
    """The one message of a command that ends with status 2."""
    assert main([str(part) for part in command]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    return message


@pytest.mark.parametrize(("model", "data", "length", "methods", "words"), [
    ("encoder", "labels", 32, "in_context: {}", "line 6: methods.in_context: in_context does not fit: it writes answered"),
    ("causal", "pairs", 32, "sift: {rank: 40}", "line 6: methods.sift.rank: 40 cannot be used here: rank 40 asks for 2560"),
    ("causal", "pairs", 32, "sift: {budget: density, density: 2}", "density 2 is more than all entries of a matrix"),
    ("causal", "pairs", 32, "lora: {dropout: 1}", "line 6: methods.lora.dropout: 1.0 cannot be used here: dropout 1 drops all"),
    ("causal", "pairs", 32, "in_context: {k: 500}", "methods.in_context.k: 500 cannot be used here: 500 demonstrations"),
    ("causal", "pairs", 32, "in_context: {instruction: ' '}", "methods.in_context.instruction: ' ' cannot be used here"),
    ("nothing", "pairs", 32, "lora: {}", "line 1: model: there is no folder"),
    ("causal", "nothing", 32, "lora: {}", "line 3: data.train: "),
    ("causal", "nothing", 32, "lora: {}", "nothing.jsonl: there is no such file; check the name"),
    ("causal", "pairs", 2, "lora: {}", "line 4: data.max_length: 2 tokens leave no row of the train split with a scored one"),
    ("encoder", "long", 512, "lora: {}", "line 4: data.max_length: a row of the train split has 160 tokens, and the model "
                                         "takes 128: give at most 128"),
    ("causal", "pairs", 32, "lora: {}\nsearch: {constraints: {accuracy: {at_least: 0.8}}}",
     "line 7: search.constraints: accuracy is not measured for task: instruct"),
    ("causal", "pairs", 32, "lora: {}\nsearch: {objectives: [validation_loss, accuracy]}",
     "line 7: search.objectives: accuracy is not measured for task: instruct"),
    ("encoder", "labels", 32, "lora: {}\nsearch: {precision: int8}",
     "line 7: search.precision: int8 is for causal models of the types Llama, Mistral, Qwen2, and BertForSequence"),
    *(("causal", "pairs", 32, f"{method}: {{length: 9000}}", f"line 6: methods.{method}.length: 9000 cannot be used here")
      for method in ("prefix", "prompt", "p_tuning", "p_tuning_v2")),
    *(("encoder", "late", 64, f"{method}: {{length: 65}}", "with the longest row (64 tokens) it takes 129 positions")
      for method in ("prefix", "prompt", "p_tuning", "p_tuning_v2")),
])
def test_what_does_not_fit_is_refused_before_anything_is_spent(
        places: Path, tmp_path: Path, capsys: Captured, model: str, data: str, length: int, methods: str, words: str) -> None:
    (places / "long.jsonl").write_text("".join(json.dumps({"text": f"w1 w{i} " * 80, "label": i % 2}) + "\n" for i in range(9)))
    late = [{"text": f"w1 w{i} " * (40 if i == 299 else 1), "label": i % 2} for i in range(300)]
    (places / "late.jsonl").write_text("".join(json.dumps(row) + "\n" for row in late))
    file = tmp_path / "mine.yaml"
    file.write_text(CONFIG.format(model=places / model, data=places / data, length=length, methods=methods,
                                  out=tmp_path / "run"))
    message = refused(capsys, "check", file)
    assert message.startswith(f"Error: {file}, line ")
    assert words in message
    assert not (tmp_path / "run").exists()


def test_the_head_s_parameters_are_counted_over_all_answers(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                            one_precision: None) -> None:
    """Though few rows are looked at to see whether a method fits."""
    monkeypatch.setattr(preparation, "LOOKED_AT", 1)
    file = tmp_path / "mine.yaml"
    file.write_text(CONFIG.format(model=places / "causal", data=places / "pairs", length=32, methods="head: {}",
                                  out=tmp_path / "run"))
    config, run = load_config(file), RunFolder(tmp_path / "run")
    with run.locked():
        run.begin(config.model_dump(mode="json"))
        study = preparation.prepare(config, run)
    words = {word for example in study.splits.train for word in example.answer.split()}
    assert len(words) > 2
    assert study.count("head", study.references["head"]) == (len({*words, "</s>"}) + 1) * 32


def test_a_classifier_that_would_read_the_padding_is_refused(places: Path, tmp_path: Path, capsys: Captured) -> None:
    shutil.copytree(places / "encoder", tmp_path / "xlnet")
    XLNetConfig(vocab_size=29, d_model=32, n_layer=2, n_head=4, d_inner=48).save_pretrained(tmp_path / "xlnet")
    file = tmp_path / "mine.yaml"
    file.write_text(CONFIG.format(model=tmp_path / "xlnet", data=places / "labels", length=32, methods="lora: {}",
                                  out=tmp_path / "run"))
    assert "line 1: model: " in (message := refused(capsys, "check", file))
    assert "(xlnet) decides by the last position of a row" in message


def test_int8_is_refused_where_trials_run_on_gpus(places: Path, tmp_path: Path, capsys: Captured,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.yaml"
    config = CONFIG.format(model=places / "causal", data=places / "pairs", length=32, methods="lora: {}", out=tmp_path / "run")
    file.write_text(config + "search: {precision: int8}\nexecutor: ray\nray: {gpus: 1}\n")
    assert "line 8: search.precision: int8 is for processors, and trials run on a GPU: leave" in refused(capsys, "check", file)
    file.write_text(config + "search: {precision: int8}\n")
    monkeypatch.setattr(preparation.torch.cuda, "is_available", lambda: True)
    assert "int8 is for processors" in refused(capsys, "check", file)


def test_options_that_do_not_fit_are_named_as_options(places: Path, tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(CONFIG.format(model=places / "encoder", data=places / "labels", length=32, methods="full: {}",
                                  out=tmp_path / "run"))
    command = ["tune", file, "--method"]
    assert refused(capsys, *command, "in_context").startswith("Error: --method: in_context does not fit: it writes")
    assert refused(capsys, *command, "lora", "--set", "dropout=1").startswith("Error: lora: dropout 1 drops all")
    assert list(tmp_path.iterdir()) == [file]


def test_an_earlier_run_that_is_none_is_named_by_field_or_option(places: Path, tmp_path: Path, capsys: Captured,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "measure_precision", lambda: Precision("fp32", 1.0, 1.0))
    file = tmp_path / "mine.yaml"
    file.write_text(CONFIG.format(model=places / "causal", data=places / "pairs", length=32, methods="lora: {}",
                                  out=tmp_path / "run") + "search:\n  from:\n    - nowhere\n")
    assert refused(capsys, "check", file).startswith(f"Error: {file}, line 10: search.from.0: nowhere is not the folder of")
    assert refused(capsys, "search", file, "--from", tmp_path / "run").startswith(
        f"Error: --from: {tmp_path / 'run'} is the run of this search itself")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("columns", "words"), [
    ("text: txt", "line 5: data.columns.text: there is no column 'txt' in "),
    ("txt: text", "line 5: data.columns.txt: there is no such field. Did you mean text?"),
])
def test_columns_that_are_not_there_are_said_with_the_line(places: Path, capsys: Captured, columns: str, words: str) -> None:
    file = places / "columns.yaml"
    file.write_text(f"model: {places / 'encoder'}\ndata:\n  train: {places / 'labels.jsonl'}\n  columns:\n    {columns}\n")
    assert f"columns.yaml, {words}" in refused(capsys, "check", file)


@pytest.mark.parametrize(("task", "words"), [
    ("train: nowhere.jsonl\n      templates: ['{text} => {label}']", "line 5: data.tasks.a.train: nowhere.jsonl: there is no"),
    ("train: labels.jsonl\n      templates: ['{text} => {label}', '{txt} => {label}']",
     "line 6: data.tasks.a.templates.1: {txt} is no column of "),
    ("train: labels.jsonl\n      templates: ['{x} => {label}']\n      columns: {x: txt}", "line 7: data.tasks.a.columns.x: "),
    ("train: labels.jsonl\n      templates: ['{text} => {label}']\n      labels: {yes: good}",
     "line 7: data.tasks.a.labels: there is no word for 'no'"),
    ("train: three.jsonl\n      templates: ['{text} => {label}']", "line 3: data.tasks: a split would be empty"),
])
def test_what_is_wrong_in_the_files_of_tasks_is_said_with_the_line(
        places: Path, capsys: Captured, task: str, words: str) -> None:
    (places / "three.jsonl").write_text('{"text": "w1", "label": 1}\n')
    file = places / "tasks.yaml"
    file.write_text(f"model: {places / 'causal'}\ndata:\n  tasks:\n    a:\n      {task}\n")
    assert f"tasks.yaml, {words}" in refused(capsys, "check", file)


def test_a_tokenizer_of_another_model(places: Path, tmp_path: Path, capsys: Captured) -> None:
    model = tiny.causal()
    model.resize_token_embeddings(tiny.VOCABULARY - 20)
    model.save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    file = tmp_path / "mine.yaml"
    file.write_text(CONFIG.format(model=tmp_path / "model", data=places / "pairs", length=32, methods="lora: {}",
                                  out=tmp_path / "run"))
    message = refused(capsys, "check", file)
    assert "line 1: model: the tokenizer of" in message
    assert "and the model knows 9: its embeddings were not enlarged" in message
