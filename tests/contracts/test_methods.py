"""What every tuning method must keep to, over the METHODS table and over three made-up methods that the loop must carry."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from optuna.distributions import CategoricalDistribution
from peft import PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification, MixtralConfig, MixtralForCausalLM

from finemesh.tuning.data.batches import Encoded
from finemesh.tuning.evaluation.evaluation import evaluate, predict_outputs
from finemesh.tuning.evaluation.generation import answers
from finemesh.tuning.kernels.sparse import SparseLinear
from finemesh.tuning.methods import METHODS, Context, Method
from finemesh.tuning.methods.base import AdapterMethod
from finemesh.tuning.methods.lora import Lora
from finemesh.tuning.methods.prefix import PrefixMethod
from finemesh.tuning.models import ModelSource, load_model, load_skeleton
from finemesh.tuning.training import Plan, fine_tune
from tests import tiny

CASES = [(kind, "instruct") for kind in ("llama", "qwen2", "gemma", "gpt2")] + [
    (kind, "classify") for kind in ("bert", "roberta", "distilbert", "llama", "qwen2", "gemma", "gpt2")] + [("bert", "regress")]
RATES = {  # for the toy; a search finds them for real tasks
    "full": 5e-3, "head": 5e-2, "prompt": 2e-2, "prefix": 1e-2, "p_tuning": 1e-2, "p_tuning_v2": 5e-2, "sift": 1e-2,
    "instruction_prompt": 2e-2,
}


class LoraWithPrefix(Lora):
    """Changes the input: shows the model a fixed word before each row."""

    name = "lora_with_prefix"
    starts_at_base = False

    def shape(self, tuned, examples, encoded, point, context, *, training) -> Sequence[Encoded]:
        return [replace(row, input_ids=[7, *row.input_ids], scored=[False, *row.scored]) for row in encoded]


class Nothing(Method):
    """Trains nothing."""

    name = "nothing"
    trains = False
    starts_at_base = True
    space: Mapping = {}
    reference: Mapping = {}

    def prepare(self, model, point, context) -> nn.Module:
        return model

    def remove(self, tuned):
        return tuned

    def save(self, tuned, folder: Path, base_name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "nothing.json").write_text(json.dumps({}))

    def load(self, model, folder):
        return model


class Averaged(Lora):
    """Keeps state of its own: a running average of the trained parameters, which is what it saves."""

    name = "averaged"

    def prepare(self, model, point, context):
        tuned = super().prepare(model, point, context)
        tuned.average = {n: p.detach().clone() for n, p in tuned.named_parameters() if p.requires_grad}
        return tuned

    def state(self, tuned):
        return super().state(tuned) | {f"average.{name}": tensor for name, tensor in tuned.average.items()}

    def optimizer(self, tuned, point):
        optimizer = super().optimizer(tuned, point)

        def follow(*_):
            for name, parameter in tuned.named_parameters():
                if parameter.requires_grad:
                    tuned.average[name].lerp_(parameter.detach(), 0.5)

        optimizer.register_step_post_hook(follow)
        return optimizer


ALL = [*METHODS.values(), LoraWithPrefix(), Nothing(), Averaged()]
PAIRS = [pytest.param((m, kind, task), id=f"{m.name}-{kind}-{task}") for m in ALL for kind, task in CASES]


def settings(method: Method) -> dict:
    defaults: dict = {}
    for name, hyperparameter in method.space.items():
        if hyperparameter.active(defaults):
            defaults[name] = hyperparameter.default
    return {**defaults, **({"learning_rate": RATES.get(method.name, 5e-3)} if method.trains else {})}


def plan(context: Context, steps: int, horizon: int | None = None, **changes) -> Plan:
    return Plan(context.task, steps, horizon or steps, 8, 0, 0, **changes)


def run(method: Method, kind: str, task: str, folder: Path, steps: int, horizon: int | None = None, **changes):
    """The tuned model, its context, its validation rows and the run's progress."""
    folder.mkdir(exist_ok=True)
    model, context = tiny.case(kind, task)
    if method.unfit(model, task):
        pytest.skip(f"{method.name} does not fit {kind} and says so")
    torch.manual_seed(3)
    tuned = method.prepare(model, settings(method), context)
    rows = method.shape(tuned, context.train, context.encoded, settings(method), context, training=True)
    progress = fine_tune(tuned, method, settings(method), rows, plan(context, steps, horizon, **changes), Accelerator(cpu=True),
                         lambda: evaluate(tuned, rows, task, 0).loss, folder)
    return tuned, context, rows, progress


def losses(progress) -> list[float]:
    return [line.validation_loss for line in progress.curve if line.validation_loss is not None]


@pytest.fixture(scope="module", params=PAIRS)
def ended(request, tmp_path_factory):
    """A whole run, for the next four tests; the last of them takes it apart."""
    method, kind, task = request.param
    return method, kind, task, *run(method, kind, task, tmp_path_factory.mktemp("run"), 16)


def test_starts_where_it_says(ended):
    method, kind, task, _, context, _, progress = ended
    if method.starts_at_base:
        base = evaluate(tiny.case(kind, task)[0], context.encoded, task, 0).loss
        assert losses(progress)[0] == pytest.approx(base, abs=1e-6)


def test_loss_falls_and_survives_a_reload(ended, tmp_path):
    method, kind, task, tuned, _, rows, progress = ended
    start, end = losses(progress)[0], losses(progress)[-1]
    assert end < start - 0.004 or not method.trains
    method.save(tuned, tmp_path / "adapter", "base")
    fresh, _ = tiny.case(kind, task)
    loaded = method.load(fresh, tmp_path / "adapter")
    assert evaluate(loaded, rows, task, 0).loss == pytest.approx(end, abs=1e-6)


def test_padding_changes_nothing(ended):
    """The first eight rows have all the lengths that there are."""
    _, _, task, tuned, _, rows, _ = ended
    together = evaluate(tuned, rows, task, 0).row_losses
    assert together[:8] == pytest.approx([evaluate(tuned, [row], task, 0).loss for row in rows[:8]], abs=1e-5)


def test_base_is_bit_equal_afterwards(ended):
    method, kind, task, tuned, _, _, _ = ended
    untouched = tiny.case(kind, task)[0].state_dict()
    base = method.remove(tuned)
    after = base.state_dict()
    assert untouched.keys() == after.keys()
    assert all(torch.equal(untouched[k], after[k]) for k in untouched)
    assert not any(p.requires_grad for p in base.parameters())


@pytest.mark.parametrize("method", [pytest.param(m, id=m.name) for m in ALL])
def test_half_the_steps_then_the_rest_is_the_whole(method, tmp_path):
    """Cut short and continued from its checkpoint in a fresh model: bit for bit the uninterrupted run."""
    whole, _, _, reference = run(method, "llama", "instruct", tmp_path / "whole", 6, 6)
    run(method, "llama", "instruct", tmp_path / "cut", 3, 6)
    tuned, _, _, continued = run(method, "llama", "instruct", tmp_path / "cut", 6, 6)
    assert all(torch.equal(a, b) for a, b in zip(method.state(whole).values(), method.state(tuned).values(), strict=True))
    expected = {line.step: (line.train_loss, line.learning_rate, line.trained_tokens) for line in reference.curve}
    assert {line.step: (line.train_loss, line.learning_rate, line.trained_tokens) for line in continued.curve} == expected
    assert [json.loads(text)["step"] for text in (tmp_path / "cut/curve.jsonl").read_text().splitlines()] == list(expected)


@pytest.mark.parametrize(("name", "changes", "kind", "task"), [
    (name, changes, kind, task) for kind, task in (("gpt2", "instruct"), ("gpt2", "classify"), ("bert", "classify"),
                                                   ("roberta", "classify"))
    for name, changes in (*((name, {}) for name, method in METHODS.items() if "length" in method.space),
                          *(("p_tuning", {"placement": place}) for place in ("after", "around")))
    if METHODS[name].unfit(tiny.case(kind, task)[0], task) is None])
def test_what_is_asked_leaves_room_for_vectors(name: str, kind: str, task: str, changes: dict[str, str]) -> None:
    method = METHODS[name]
    model, context = tiny.case(kind, task)
    point = {**settings(method), **changes, "length": 20}
    tuned = method.prepare(model, point, context).eval()
    whole = Encoded([*range(5, 29)] * 5, [False] * 120, token_type_ids=[0] * 120 if kind == "bert" else None)
    [row] = method.shape(tuned, context.train[:1], [whole], point, context, training=False)
    room = context.context_length - 20
    kept = whole.input_ids[-room:] if task == "instruct" else whole.input_ids[:room - 1] + whole.input_ids[-1:]
    assert [token for token in row.input_ids if token < tiny.VOCABULARY] == kept
    if task == "instruct":
        answers(tuned, context.tokenizer, [row])
    else:
        predict_outputs(tuned, [row], 0)


@pytest.mark.parametrize("method", [pytest.param(m, id=m.name) for m in METHODS.values()])
def test_table_entry_is_whole(method):
    assert METHODS[method.name] is method
    assert method.summary
    assert method.source
    assert set(method.reference) == set(method.space)
    for name, hyperparameter in method.space.items():
        assert hyperparameter.distribution._contains(hyperparameter.distribution.to_internal_repr(method.reference[name]))


def others(method: Method) -> list[dict]:
    """Of what is counted by shapes alone, the reference settings with each choice in turn."""
    return [method.reference | {name: value} for name, hyperparameter in method.space.items()
            if isinstance(method, AdapterMethod) and isinstance(hyperparameter.distribution, CategoricalDistribution)
            for value in hyperparameter.distribution.choices]


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")  # PEFT's own
def test_parameters_of_experts_in_one_tensor_are_counted_too() -> None:
    """As PEFT puts LoRA into them, where the others are counted from their shapes."""
    with torch.device("meta"):
        model = MixtralForCausalLM(MixtralConfig(**tiny._SIZES)).requires_grad_(False)
    context = Context("instruct", tiny.tokenizer(), (), (), 64, 64, 0)
    method, point = METHODS["lora"], dict(METHODS["lora"].reference)
    tuned = method.prepare(copy.deepcopy(model), point, context)
    assert method.trainable(model, point, context) == sum(p.numel() for p in tuned.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", METHODS)
def test_the_trained_parameters_are_counted_without_the_weights(name: str) -> None:
    method = METHODS[name]
    for kind, task in [(kind, "instruct") for kind in ("llama", "gpt2")] + [
            (kind, "classify") for kind in ("bert", "roberta", "distilbert", "llama")]:
        model, context = tiny.case(kind, task)
        if method.unfit(model, task):
            continue
        with torch.device("meta"):
            skeleton = type(model)(model.config).requires_grad_(False)
        there_are = [name for name, _ in skeleton.named_modules()]
        for point in (settings(method), dict(method.reference), *others(method)):
            if method.refuses(model, point, context):
                continue
            tuned = method.prepare(model, point, context)
            there = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
            model = method.remove(tuned)
            assert method.trainable(skeleton, point, context) == there, (kind, task, point)
            assert [name for name, _ in skeleton.named_modules()] == there_are
            assert not any(parameter.requires_grad for parameter in skeleton.parameters())


@pytest.mark.parametrize(("kind", "name"), [
    (kind, name) for kind in ("bert", "deberta") for name, method in METHODS.items()
    if method.trains and "classify" in method.tasks
    and not (kind == "deberta" and isinstance(method, PrefixMethod))])  # it takes no keys and values from outside
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_what_a_checkpoint_lacks_is_saved_beside_its_head(kind, name, tmp_path):
    """A pooler that transformers draws: plain libraries draw another one, and must find ours in the adapter."""
    saved = {"bert": tiny.without_pooler, "deberta": tiny.deberta}[kind]()
    saved.save_pretrained(tmp_path / "base")
    source = ModelSource("base", str(tmp_path / "base"), "base")
    _, context = tiny.case("bert", "classify")
    method = METHODS[name]
    model = load_model(source, "classify", labels=tiny.LABELS)
    before = copy.deepcopy(model.state_dict())
    point = method_point(method)
    counted = method.trainable(load_skeleton(source, "classify", labels=tiny.LABELS), point, context)
    tuned = method.prepare(model, point, context)
    assert counted == sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    if name == "sift":
        for layer in tuned.modules():
            if isinstance(layer, SparseLinear):
                layer.fold()
    rows = method.shape(tuned, context.train, context.encoded, point, context, training=False)
    expected = evaluate(tuned, rows, "classify", 0)
    method.save(tuned, tmp_path / "adapter", "base")
    if (tmp_path / "adapter" / "adapter_config.json").exists():
        torch.manual_seed(99)
        plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)
        loaded = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
        found = evaluate(loaded, rows, "classify", 0)
        assert found.row_losses == pytest.approx(expected.row_losses, abs=1e-5)
    loaded = method.load(load_model(source, "classify", labels=tiny.LABELS, head_seed=99), tmp_path / "adapter")
    assert evaluate(loaded, rows, "classify", 0).row_losses == pytest.approx(expected.row_losses, abs=1e-5)
    again = method.remove(tuned)
    assert all(torch.equal(tensor, before[key]) for key, tensor in again.state_dict().items())


def method_point(method: Method) -> dict:
    """Its reference settings, sized for a tiny model."""
    sizes = {"length": 4, "rank": 2, "reduction": 4, "hidden_size": 16}
    return {name: sizes.get(name, value) for name, value in method.reference.items()}
