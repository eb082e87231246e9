"""finemesh probe on a tiny model: the document, the page, a run's adapter beside it, and what is refused."""

import json
import re
from pathlib import Path

import pytest

from finemesh import probing
from finemesh.cli import main
from finemesh.config import Config, load_config
from finemesh.errors import InputError
from finemesh.run import RunFolder
from finemesh.trial import Outcome, write_json, write_outcome
from finemesh.tuning.methods import METHODS
from finemesh.tuning.models import find_model
from finemesh.tuning.precision import Precision
from finemesh.tuning.task import Task
from tests import tiny

FEW = {"batches": 2, "directions": 2, "points": 5}


def config(places: Path, model: str = "causal", data: str = "pairs") -> Config:
    file = places / f"{model}.yaml"
    file.write_text(f"model: {places / model}\ndata: {{train: {places / data}.jsonl, max_length: 32}}\n")
    return load_config(file)


def tuned_run(places: Path, method: str) -> Path:
    """What a search hands over, made by hand."""
    run = RunFolder(places / f"{method}-run")
    plug, (model, context) = METHODS[method], tiny.case("llama", "instruct")
    point = dict(plug.reference)
    tuned = plug.prepare(model, point, context)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05)
    plug.save(tuned, run.trial(0) / "adapter", "causal")
    write_outcome(run.trial(0), Outcome(0, "complete", method, point, 0, validation_loss=1.0))
    (run.path / "config.yaml").write_text("out: here\n")
    source = find_model(str(places / "causal"))
    task = Task(source, "instruct", run.splits, (), 32, 8, 1, 4, 0, Precision("fp32", 1.0, 1.0), 1)
    write_json(run.task, task.to_json())
    return run.path


@pytest.mark.parametrize(("model", "data"), [("causal", "pairs"), ("encoder", "labels")])
def test_what_is_written(places: Path, tmp_path: Path, model: str, data: str) -> None:
    document = probing.probe(config(places, model, data), out=str(tmp_path / "out"), counts=FEW)
    written = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert written == {name: value for name, value in document.items() if name != "files"}
    for kind in ("pretrained", "random"):
        for group in ("all", "body"):
            shares = [document["gradients"][kind][group]["batch"][top]["squared"]["mean"] for top in document["tops"]]
            assert 0 < shares[0] < shares[1] < shares[2] < 1
        for way in ("filter", "unit"):
            found = document["landscape"][kind][way]
            assert len(found["distances"]) == 5
            assert len(found["losses"]) == 2 * (1 if kind == "pretrained" else 2)
            middle = {curve[2] for curve in found["losses"]}
            assert len(middle) == (1 if kind == "pretrained" else 2)  # the model where it is, whatever the direction
            assert found["amplitude"]["mean"] > 0
        assert document["flatness"][kind]["worst_rise"]["mean"] > 0
    assert "tuned" not in document["flatness"]
    page = (tmp_path / "out" / "probe.html").read_text()
    assert page.count("<polyline") == 2 * (2 + 4)
    assert not re.search(r"(src|href)=[\"']?http", page)


def test_a_run_is_measured_with_its_adapter(places: Path, tmp_path: Path) -> None:
    run = tuned_run(places, "lora")
    plain = probing.probe(config(places), run=run, out=str(tmp_path / "out"), counts=FEW)["flatness"]
    assert plain["tuned"]["loss"]["mean"] != pytest.approx(plain["pretrained"]["loss"]["mean"], abs=1e-3)


def test_runs_that_cannot_be_measured(places: Path, tmp_path: Path) -> None:
    prompt = tuned_run(places, "prompt")
    with pytest.raises(InputError, match=r"tuned by prompt, which leaves the weights as they are.*lora"):
        probing.probe(config(places), run=prompt, out=str(tmp_path / "out"))
    with pytest.raises(InputError, match="is not the folder of a run"):
        probing.probe(config(places), run=tmp_path, out=str(tmp_path / "out"))
    lora = tuned_run(places, "lora")
    with pytest.raises(InputError, match=r"tuned causal, the config names encoder for the labels no, yes"):
        probing.probe(config(places, "encoder", "labels"), run=lora, out=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_command(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config(places)
    given = ["probe", str(places / "causal.yaml"), "--batches", "2", "--directions", "2", "--out", str(tmp_path / "out")]
    assert main(given) == 0
    printed = capsys.readouterr()
    assert "randomly initialised" in printed.out
    assert "probe.html" in printed.out
    assert "Measuring the pretrained model" in printed.err
    assert main([*given[:2], "--batches", "1"]) == 2
    assert "--batches: must be a whole number of at least 2" in capsys.readouterr().err
