"""P-tuning: the vectors lie where they should, come from the encoder that was asked for, and are saved without it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

from finemesh.tuning.data.batches import Encoded, collate, question
from finemesh.tuning.evaluation.evaluation import evaluate
from finemesh.tuning.evaluation.generation import answers
from finemesh.tuning.evaluation.loss import batch_losses
from finemesh.tuning.methods import METHODS, Context
from finemesh.tuning.methods.placement import FIRST, placed, pseudo_tokens
from finemesh.tuning.training import Plan, fine_tune
from tests import tiny

METHOD = METHODS["p_tuning"]
POINT = {"length": 5, "placement": "before", "encoder": "lstm", "hidden_size": 12, "learning_rate": 1e-2}
CASES = [("llama", "instruct"), ("gpt2", "instruct"), ("gemma", "instruct"), ("bert", "classify"), ("gpt2", "classify"),
         ("llama", "regress")]


def prepared(kind: str, task: str, half: bool = False, **changes: Any) -> tuple[Any, Context, list[Encoded]]:
    """Tuned, its context and the shaped rows."""
    model, context = tiny.case(kind, task)
    torch.manual_seed(1)
    tuned = METHOD.prepare(model.bfloat16() if half else model, POINT | changes, context)
    rows = METHOD.shape(tuned, context.train, context.encoded, POINT | changes, context, training=True)
    return tuned, context, list(rows)


def vectors(tuned: Any) -> torch.Tensor:
    found: torch.Tensor = tuned.get_prompt(1)[0] if isinstance(tuned, PeftModel) else pseudo_tokens(tuned).vectors()
    return found


class ClsTokenizer:
    cls_token_id, bos_token_id, sep_token_id = 2, None, 3


class PlainTokenizer:
    cls_token_id = bos_token_id = sep_token_id = None


def shown(row: Encoded) -> list[int | str]:
    return [f"p{i - FIRST}" if i >= FIRST else i for i in row.input_ids]


def test_around_a_question_and_its_answer() -> None:
    row = Encoded([7, 8, 9, 10, 11], [False, False, False, True, True])
    found = placed(row, 2, 1, PlainTokenizer())  # type: ignore[arg-type]
    assert shown(found) == ["p0", "p1", 7, 8, 9, "p2", 10, 11]
    assert found.scored == [False] * 6 + [True] * 2
    asked = placed(Encoded([7, 8, 9], [False] * 3), 2, 1, PlainTokenizer())  # type: ignore[arg-type]
    assert asked.input_ids == found.input_ids[:6]


def test_directly_before_the_last_answer_of_a_dialogue() -> None:
    row = Encoded([7, 8, 9, 10, 11, 12], [False, True, False, False, True, True])
    assert shown(placed(row, 0, 2, PlainTokenizer())) == [7, 8, 9, 10, "p0", "p1", 11, 12]  # type: ignore[arg-type]
    cut = Encoded([7, 8], [False, True])
    assert shown(placed(cut, 1, 1, PlainTokenizer())) == ["p0", 7, "p1", 8]  # type: ignore[arg-type]


def test_within_what_opens_and_closes_a_text() -> None:
    row = Encoded([2, 8, 3, 9, 3], [False] * 5, 1, [0, 0, 0, 1, 1])
    found = placed(row, 2, 2, ClsTokenizer())  # type: ignore[arg-type]
    assert shown(found) == [2, "p0", "p1", 8, 3, 9, "p2", "p3", 3]
    assert found.token_type_ids == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert found.label == 1
    assert shown(placed(row, 0, 1, ClsTokenizer())) == [2, 8, 3, 9, "p0", 3]  # type: ignore[arg-type]


@pytest.mark.parametrize("placement", ["before", "after", "around"])
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_the_model_reads_the_vectors_in_their_places(kind: str, task: str, placement: str) -> None:
    """As if they were words: the embeddings that the model is given are those of the row with the vectors put in."""
    tuned, _, rows = prepared(kind, task, placement=placement)
    seen: list[torch.Tensor] = []

    def look(module: Any, given: Any, named: dict[str, Any]) -> None:
        embedded = named.get("inputs_embeds")
        seen.append(module.get_input_embeddings()(named.get("input_ids", *given)) if embedded is None else embedded)

    base: Any = tuned.get_base_model() if isinstance(tuned, PeftModel) else tuned
    base.base_model.register_forward_pre_hook(look, with_kwargs=True)
    words: Callable[..., torch.Tensor] = tiny.case(kind, task)[0].get_input_embeddings()
    with torch.no_grad():
        model: Any = tuned.eval()
        model(input_ids=torch.tensor([rows[3].input_ids]))
        soft = vectors(tuned)
        ids = rows[3].input_ids if placement != "before" else [*range(FIRST, FIRST + 5), *rows[3].input_ids]
        expected = torch.stack([soft[i - FIRST] if i >= FIRST else words(torch.tensor(i)) for i in ids])
    torch.testing.assert_close(seen[0][0], expected)
    assert sum(i >= FIRST for i in ids) == 5


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
@pytest.mark.parametrize("placement", ["before", "around"])
def test_the_encoder_is_the_one_asked_for_and_is_trained(placement: str, encoder: str, tmp_path: Path) -> None:
    tuned, _, rows = prepared("llama", "instruct", placement=placement, encoder=encoder)
    before = {name: p.detach().clone() for name, p in tuned.named_parameters() if p.requires_grad}
    lstms = [module for module in tuned.modules() if isinstance(module, nn.LSTM)]
    assert [(lstm.bidirectional, lstm.hidden_size) for lstm in lstms] == [(True, 12)] * (encoder == "lstm")
    assert any("mlp_head" in name for name in before)
    assert any("_reverse" in name for name in before) == (encoder == "lstm")
    start = vectors(tuned).detach().clone()
    fine_tune(tuned, METHOD, POINT, rows, Plan("instruct", 3, 3, 8, 0, 0), Accelerator(cpu=True), lambda: 0.0, tmp_path)
    assert all(not torch.equal(p, before[name]) for name, p in tuned.named_parameters() if name in before)
    assert (vectors(tuned) - start).abs().max() > 1e-3


@pytest.mark.parametrize("placement", ["before", "after", "around"])
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_what_is_saved_has_no_encoder_and_the_same_loss(kind: str, task: Any, placement: str, tmp_path: Path) -> None:
    tuned, context, rows = prepared(kind, task, placement=placement)
    fine_tune(tuned, METHOD, POINT, rows, Plan(task, 8, 8, 8, 0, 0), Accelerator(cpu=True), lambda: 0.0, tmp_path)
    expected = evaluate(tuned, rows, task, 0)
    METHOD.save(tuned, tmp_path / "adapter", "base")
    fresh, _ = tiny.case(kind, task)
    if placement == "before":
        saved = load_file(tmp_path / "adapter/adapter_model.safetensors")
        assert saved.pop("prompt_embeddings").shape == (5, 32)
        loaded: nn.Module = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter")).eval()
    else:
        saved = load_file(tmp_path / "adapter/prompt.safetensors")
        assert saved.pop("vectors").shape == (5, 32)
        assert json.loads((tmp_path / "adapter/prompt.json").read_text())["base_model"] == "base"
        loaded = METHOD.load(fresh, tmp_path / "adapter")
    assert all("classifier" in name or "score" in name for name in saved)
    again = METHOD.shape(loaded, context.train, context.encoded, POINT | {"placement": placement}, context, training=False)
    found = evaluate(loaded, again, task, 0)
    assert found.row_losses == pytest.approx(expected.row_losses, abs=1e-6)
    assert found.row_weights == [sum(row.scored) if task == "instruct" else 1 for row in context.encoded]


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_within_the_input_too_the_base_is_bit_equal_afterwards(kind: str, task: Any, tmp_path: Path) -> None:
    untouched = {k: v.clone() for k, v in tiny.case(kind, task)[0].state_dict().items()}
    tuned, _, rows = prepared(kind, task, placement="around")
    fine_tune(tuned, METHOD, POINT, rows, Plan(task, 2, 2, 8, 0, 0), Accelerator(cpu=True), lambda: 0.0, tmp_path)
    base = METHOD.remove(tuned)
    after = base.state_dict()
    assert list(untouched) == list(after)
    assert all(torch.equal(untouched[k], after[k]) for k in untouched)
    assert not any(p.requires_grad for p in base.parameters())
    assert isinstance(base.get_input_embeddings(), nn.Embedding)


def test_within_the_input_too_half_the_steps_then_the_rest_is_the_whole(tmp_path: Path) -> None:
    found = []
    for name, steps in (("whole", [6]), ("cut", [3, 6])):
        (tmp_path / name).mkdir()
        for stop in steps:
            tuned, _, rows = prepared("llama", "classify", placement="around")
            progress = fine_tune(tuned, METHOD, POINT, rows, Plan("classify", stop, 6, 8, 0, 0), Accelerator(cpu=True),
                                 lambda: 0.0, tmp_path / name)
        assert progress.curve is not None
        found.append(([line.train_loss for line in progress.curve], METHOD.state(tuned)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(tensor, found[1][1][name]) for name, tensor in found[0][1].items())


@pytest.mark.parametrize("placement", ["before", "after", "around"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_answers_are_asked_with_the_input_of_training(kind: str, placement: str) -> None:
    tuned, context, rows = prepared(kind, "instruct", placement=placement)
    nn.init.normal_(next(p for name, p in tuned.named_parameters() if name.endswith("mlp_head.2.bias")), std=0.3)
    tuned.generation_config.repetition_penalty = 1.3  # which looks at every token of the question
    asked = [question(example, context.tokenizer, 64) for example in context.train[:6]]
    shaped = METHOD.shape(tuned, context.train, asked, POINT | {"placement": placement}, context, training=False)
    for row, ask in zip(rows, shaped, strict=False):
        start = row.scored.index(True)
        assert row.input_ids[:start] == ask.input_ids
        ids = list(ask.input_ids)
        for _ in range(4):  # one token at a time, by the way that losses take
            every = [Encoded([*ids, i], [False] * len(ids) + [True]) for i in range(tiny.VOCABULARY)]
            losses = batch_losses(tuned, collate(every, 0), "instruct").losses
            ids.append(int(losses.argmin()))
        new = ids[len(ask.input_ids):]
        (found,) = answers(tuned, context.tokenizer, [ask], 4)
        end = new.index(1) if 1 in new else 4
        assert found == context.tokenizer.decode(new[:end], skip_special_tokens=True).strip()


@pytest.mark.parametrize("placement", ["before", "around"])
@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
@pytest.mark.parametrize(("kind", "task"), [("gemma", "instruct"), ("bert", "classify")])
def test_in_bfloat16_what_is_trained_stays_float32(kind: str, task: Any, placement: str, encoder: str) -> None:
    curves = []
    for half in (False, True):
        tuned, _, rows = prepared(kind, task, half, placement=placement, encoder=encoder)
        parameters = [p for p in tuned.parameters() if p.requires_grad]
        assert {p.dtype for p in parameters} == {torch.float32}
        optimizer, curve = torch.optim.AdamW(parameters, lr=1e-2), []
        for _ in range(16):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = batch_losses(tuned, collate(rows, 0), task).losses.mean()
                assert vectors(tuned).dtype == torch.float32
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.append(float(loss.detach()))
        curves.append(curve)
    assert curves[0][-1] < curves[0][0] - 0.01
    assert curves[1] == pytest.approx(curves[0], abs=(curves[0][0] - curves[0][-1]) / 2)


def test_the_context_bounds_the_length() -> None:
    model, context = tiny.case("llama", "instruct")
    assert METHOD.refuses(model, POINT, context) is None
    assert "the model has 128" in str(METHOD.refuses(model, POINT | {"length": 126}, context))
