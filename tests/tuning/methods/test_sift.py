"""SIFT against the plain reference: AdamW on the dense weights with the gradient multiplied by the mask."""

import copy
import json
import warnings

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn

from finemesh.tuning.data.batches import collate, training_batches
from finemesh.tuning.evaluation.evaluation import evaluate
from finemesh.tuning.evaluation.loss import batch_losses
from finemesh.tuning.heads import new_layers
from finemesh.tuning.kernels.sparse import SparseLinear
from finemesh.tuning.methods import METHODS, Context
from finemesh.tuning.methods.calibration import calibration_rows, summed_gradients
from finemesh.tuning.methods.selection import highest, highest_overall
from finemesh.tuning.methods.targets import linear_layers
from finemesh.tuning.training import CurveLine, Plan, fine_tune
from tests import tiny

SIFT = METHODS["sift"]
POINT = {"budget": "rank", "rank": 2, "scope": "matrix", "score": "gradient", "calibration_batches": 1, "layers": "all",
         "learning_rate": 1e-2, "weight_decay": 0.1}


def sparse_layers(model: nn.Module) -> dict[str, SparseLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}


def prepared(kind: str = "llama", task: str = "instruct", dtype: torch.dtype = torch.float32, **changes):
    model, context = tiny.case(kind, task)
    torch.manual_seed(0)
    return SIFT.prepare(model.to(dtype), {**POINT, **changes}, context), context


class Reference:
    """Dense float32 weights; increments decay, masks keep the rest where it is. The calibration's rows join the first batch."""

    def __init__(self, tuned: nn.Module, context: Context, clip: float) -> None:
        self.model = tiny.case("llama", "instruct")[0]
        self.masks, self.starts = {}, {}
        for name, layer in sparse_layers(tuned).items():
            weight = self.model.get_parameter(f"{name}.weight").requires_grad_(True)
            mask = torch.zeros(weight.numel())
            mask[layer.entries.flat.long()] = 1
            self.masks[name], self.starts[name] = mask.view_as(weight), weight.detach().clone()
        self.waiting, self.clip = list(tuned.calibration), clip
        self.scored_a_row = sum(sum(row.scored) for row in context.encoded) / len(context.encoded)
        self.deltas = {name: nn.Parameter(torch.zeros_like(start)) for name, start in self.starts.items()}
        self.optimizer = torch.optim.AdamW(self.deltas.values(), lr=POINT["learning_rate"], weight_decay=POINT["weight_decay"])

    def update(self, rows: list, rate: float) -> float:
        """The gradient's norm before clipping."""
        rows, self.waiting = rows + self.waiting, []
        losses = batch_losses(self.model, collate(rows, 0), "instruct").losses
        (losses.sum() / (self.scored_a_row * len(rows))).backward()
        for name, delta in self.deltas.items():
            weight = self.model.get_parameter(f"{name}.weight")
            delta.grad = weight.grad * self.masks[name]
            weight.grad = None
        norm = float(nn.utils.clip_grad_norm_(self.deltas.values(), self.clip))
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        with torch.no_grad():
            for name, delta in self.deltas.items():
                self.model.get_parameter(f"{name}.weight").copy_(self.starts[name] + delta)
        return norm


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_is_masked_adamw_on_the_dense_weights(accumulation, checkpointing, tmp_path):
    tuned, context = prepared()
    clip = 0.1
    reference, norms = Reference(tuned, context, clip), []
    batches = training_batches([len(row.input_ids) for row in context.encoded], 6, 0)
    if checkpointing:
        tuned.activation_checkpointing_enable()

    def compare(line: CurveLine) -> None:
        if line.step == 0:
            assert line.trained_tokens == sum(len(row.input_ids) for row in reference.waiting) > 0
            return
        norms.append(reference.update([context.encoded[i] for i in next(batches)], line.learning_rate))
        for name, layer in sparse_layers(tuned).items():
            dense = reference.model.get_parameter(f"{name}.weight")
            torch.testing.assert_close(layer.weight, dense, atol=1e-6, rtol=0)

    fine_tune(tuned, SIFT, POINT, context.encoded, Plan("instruct", 20, 20, 6, 0, 0, accumulation=accumulation, clip=clip),
              Accelerator(cpu=True), lambda: 0.0, tmp_path, report=compare)
    assert min(norms[:10]) > clip  # the first, too
    moved = [float((layer.weight - reference.starts[name]).abs().max()) for name, layer in sparse_layers(tuned).items()]
    assert min(moved) > 0.05  # the last matrix too: none is left out, and none is a step late


def test_every_update_lands_at_once_and_only_where_it_should():
    tuned, context = prepared()
    before = {name: layer.weight.clone() for name, layer in sparse_layers(tuned).items()}
    optimizer = SIFT.optimizer(tuned, POINT)
    batch_losses(tuned, collate(context.encoded[:8], 0), "instruct").losses.mean().backward()
    optimizer.step()
    for name, layer in sparse_layers(tuned).items():
        moved = (layer.weight != before[name]).flatten().nonzero()[:, 0]
        assert set(moved.tolist()) <= set(layer.entries.flat.tolist())
        assert len(moved) > 0.5 * len(layer.entries.flat)
        torch.testing.assert_close(layer.weight.view(-1)[layer.entries.flat], layer.before + layer.delta)


def test_no_update_is_lost_in_bfloat16():
    tuned, context = prepared(dtype=torch.bfloat16, learning_rate=1e-4, weight_decay=0.0)
    optimizer = SIFT.optimizer(tuned, {**POINT, "learning_rate": 1e-4, "weight_decay": 0.0})
    for step in range(30):
        batch_losses(tuned, collate(context.encoded[step % 3 * 8:][:8], 0), "instruct").losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    for layer in sparse_layers(tuned).values():
        assert layer.delta.dtype == torch.float32
        exact = layer.before.float() + layer.delta
        assert torch.equal(layer.weight.view(-1)[layer.entries.flat], exact.bfloat16())
        assert float(layer.delta.detach().abs().median()) > 2e-4  # each update of 1e-4 is below bfloat16's step


def test_the_mask_is_the_highest_of_the_summed_gradient():
    model, context = tiny.case("llama", "instruct")
    plain = copy.deepcopy(model)
    torch.manual_seed(0)
    tuned = SIFT.prepare(model, {**POINT, "calibration_batches": 2}, context)
    torch.manual_seed(0)
    rows = calibration_rows(context, 2)
    assert len({id(row) for row in rows}) == 16
    layers = linear_layers(plain, "all")
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    scored_a_row = sum(sum(row.scored) for row in context.encoded) / len(context.encoded)
    (batch_losses(plain, collate(rows, 0), "instruct").losses.sum() / (scored_a_row * len(rows))).backward()
    for name, layer in sparse_layers(tuned).items():
        gradient = layers[name].weight.grad.flatten()
        count = 2 * sum(layers[name].weight.shape)
        assert len(layer.entries.flat) == count
        floor = gradient.abs().sort(descending=True).values[count - 1]
        assert bool((gradient[layer.entries.flat].abs() >= floor - 1e-7).all())
        torch.testing.assert_close(layer.first, gradient[layer.entries.flat], atol=1e-6, rtol=1e-4)


def test_calibration_leaves_the_model_as_it_was():
    model, context = tiny.case("llama", "instruct")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {name: model.get_parameter(f"{name}.weight") for name in linear_layers(model, "all")}
    summed_gradients(model, weights, context.encoded[:8], context)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("score", ["gradient_weight", "magnitude", "random"])
@pytest.mark.parametrize("scope", ["matrix", "model"])
def test_other_scores_and_a_budget_over_all_matrices(score, scope):
    tuned, _ = prepared(score=score, scope=scope)
    layers = sparse_layers(tuned)
    total = sum(2 * sum(layer.weight.shape) for layer in layers.values())
    assert sum(len(layer.entries.flat) for layer in layers.values()) == total
    if score == "magnitude" and scope == "matrix":
        layer = layers["model.layers.0.mlp.up_proj"]
        chosen = layer.weight.view(-1)[layer.entries.flat].abs()
        assert float(chosen.min()) >= float(layer.weight.abs().flatten().sort(descending=True).values[len(chosen) - 1])


def test_the_highest_overall_are_those_of_one_sorted_list():
    scores = {name: torch.rand(50 * (i + 1)).round(decimals=1) for i, name in enumerate("abc")}
    found = highest_overall(scores, 60)
    kept = torch.cat([scores[name][found[name].long()] for name in scores])
    assert sorted(kept.tolist()) == sorted(torch.cat(list(scores.values())).tolist())[-60:]
    assert highest(scores["a"], 7).tolist() == sorted(highest(scores["a"], 7).tolist())


@pytest.mark.parametrize("count", [3, 4, 6, 7, 12])
@pytest.mark.parametrize("low", [0.0, 0.1, 0.5])
def test_a_matrix_keeps_its_best_within_the_count(low, count):
    scores = {"low": torch.full((4,), low), "high": torch.tensor([0.5, 0.9, 0.5, 0.8]), "lower": low * torch.rand(4)}
    found = highest_overall(scores, count)
    assert sum(map(len, found.values())) == count
    assert all(len(set(entries.tolist())) == len(entries) > 0 for entries in found.values())
    assert all(scores[name][entries.long()].max() == scores[name].max() for name, entries in found.items())
    rest = [scores[name].sort(descending=True).values[1:] for name in scores]
    kept = [scores[name][entries.long()].sort(descending=True).values[1:] for name, entries in found.items()]
    assert torch.cat(kept).sort().values.tolist() == torch.cat(rest).sort().values[9 - (count - 3):].tolist()


@pytest.mark.parametrize(("kind", "task"), [("llama", "instruct"), ("qwen2", "instruct"), ("bert", "classify"),
                                            ("bert", "regress")])
def test_a_stock_shira_adapter_gives_and_merges_to_the_same_logits(kind, task, tmp_path):
    tuned, context = prepared(kind, task)
    fine_tune(tuned, SIFT, POINT, context.encoded, Plan(task, 6, 6, 8, 0, 0), Accelerator(cpu=True), lambda: 0.0, tmp_path)
    SIFT.save(tuned, tmp_path / "adapter", "base")
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["peft_type"] == "SHIRA"
    assert config["r"] == 2
    batch = collate(context.encoded[:8], 0)
    mask = (torch.arange(batch.input_ids.size(1)) < batch.lengths[:, None]).long()

    def logits(model: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(input_ids=batch.input_ids, attention_mask=mask).logits

    expected = logits(tuned)
    with warnings.catch_warnings():  # torch says once that PEFT's sparse tensors are unchecked
        warnings.filterwarnings("ignore", "Sparse", UserWarning)
        stock = PeftModel.from_pretrained(tiny.case(kind, task)[0], str(tmp_path / "adapter"))
        assert torch.equal(logits(stock), expected)
        assert torch.equal(logits(stock.merge_and_unload()), expected)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_what_a_stock_adapter_gives_does_not_depend_on_the_new_layers_of_the_base(kind, tmp_path):
    tuned, context = prepared(kind, "classify")
    plan = Plan("classify", 6, 6, 8, 0, 0)
    fine_tune(tuned, SIFT, POINT, context.encoded, plan, Accelerator(cpu=True), lambda: 0.0, tmp_path)
    SIFT.save(tuned, tmp_path / "adapter", "base")
    expected = evaluate(tuned, context.encoded, "classify", 0).loss
    for load in (SIFT.load, lambda model, folder: PeftModel.from_pretrained(model, str(folder)).eval()):
        base, _ = tiny.case(kind, "classify")
        for name in new_layers(base):
            for parameter in base.get_submodule(name).parameters():
                nn.init.normal_(parameter)
        loss = evaluate(load(base, tmp_path / "adapter"), context.encoded, "classify", 0).loss
        assert loss == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("kind", "task", "changes"), [
    ("gpt2", "instruct", {}), ("gpt2", "classify", {"budget": "density", "density": 0.05}),
    ("llama", "instruct", {"budget": "density", "density": 0.01}), ("llama", "instruct", {"scope": "model"})])
def test_what_shira_cannot_hold_is_kept_in_a_file_of_our_own(kind, task, changes, tmp_path):
    tuned, context = prepared(kind, task, **changes)
    fine_tune(tuned, SIFT, {**POINT, **changes}, context.encoded, Plan(task, 6, 6, 8, 0, 0), Accelerator(cpu=True),
              lambda: 0.0, tmp_path)
    SIFT.save(tuned, tmp_path / "adapter", "base")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == ["sift.json", "sift.safetensors"]
    loaded = SIFT.load(tiny.case(kind, task)[0], tmp_path / "adapter")
    expected = evaluate(tuned, context.encoded, task, 0).loss
    assert evaluate(loaded, context.encoded, task, 0).loss == pytest.approx(expected, abs=1e-6)


def test_entries_and_increments_follow_the_model_s_device(tmp_path):
    tuned, _ = prepared()
    SIFT.save(tuned, tmp_path, "base")
    loaded = SIFT.load(tiny.case("llama", "instruct")[0].to("meta"), tmp_path)
    assert {parameter.device.type for parameter in loaded.parameters()} == {"meta"}


def test_a_rank_that_a_matrix_cannot_hold_is_refused():
    model, context = tiny.case("llama", "instruct")
    message = SIFT.refuses(model, {**POINT, "rank": 40}, context)
    assert message == ("rank 40 asks for 2560 entries of model.layers.0.self_attn.q_proj, which has only 1024: "
                       "the rank may be at most 16")
    assert SIFT.refuses(model, {**POINT, "rank": 4}, context) is None


@pytest.mark.parametrize(("kind", "task", "count"), [("llama", "instruct", 4), ("gpt2", "instruct", 2),
                                                     ("bert", "classify", 4)])
def test_the_layers_of_the_attention(kind, task, count):
    model, _ = tiny.case(kind, task)
    assert len(linear_layers(model, "attention")) == 2 * count
    assert set(linear_layers(model, "attention")) < set(linear_layers(model, "all"))


def test_attention_that_is_not_known_is_refused(monkeypatch):
    model, context = tiny.case("llama", "instruct")
    monkeypatch.setattr("finemesh.tuning.methods.targets.architecture", lambda model: None)
    message = SIFT.refuses(model, {**POINT, "layers": "attention"}, context)
    assert message == "the attention layers of LlamaForCausalLM are not known; use layers: all"
