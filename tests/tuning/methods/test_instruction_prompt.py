"""Instruction prompt tuning: what stock PEFT loads, and what is shown behind the trained vectors."""

import pytest
import torch
from peft import PeftModel

from finemesh.tuning.evaluation.evaluation import evaluate
from finemesh.tuning.methods import METHODS
from tests import tiny
from tests.tuning.methods.test_in_context import context_of, targets, text, told

METHOD = METHODS["instruction_prompt"]
POINT = {"length": 6, "init": "uniform", "learning_rate": 1e-2, "k": 2, "selection": "similar", "order": "similar_last",
         "template": "turns", "instruction": "w1 w2"}


def prepared(point=POINT, **changes):
    context = context_of(tiny.dialogues(), **changes)
    torch.manual_seed(0)
    tuned = METHOD.prepare(tiny.causal(), point, context)
    return tuned, context, METHOD.shape(tuned, context.train, context.encoded, point, context, training=True)


def test_only_the_vectors_are_trained_and_they_start_as_the_paper_says():
    tuned, _, _ = prepared()
    [soft] = [p for p in tuned.parameters() if p.requires_grad]
    assert soft.shape == (6, 32)
    assert -0.5 <= soft.min().item() < -0.4 < 0.4 < soft.max().item() <= 0.5
    tuned, _, _ = prepared(POINT | {"init": "vocabulary"})
    [soft] = [p for p in tuned.parameters() if p.requires_grad]
    words = tiny.causal().get_input_embeddings().weight
    assert all(any(torch.equal(vector, word) for word in words) for vector in soft)


def test_an_embedding_that_scales_what_it_holds_is_asked():
    model, context = tiny.causal(), context_of(tiny.dialogues())
    words = model.get_input_embeddings()
    words.register_forward_hook(lambda module, ids, found: 4 * found)
    [soft] = [p for p in METHOD.prepare(model, POINT | {"init": "vocabulary"}, context).parameters() if p.requires_grad]
    assert all(any(torch.equal(vector, 4 * word) for word in words.weight) for vector in soft)


def test_behind_the_vectors_come_instruction_and_demonstrations_and_the_same_tokens_are_scored():
    _, context, rows = prepared()
    assert targets(rows) == targets(context.encoded)
    assert all(text(context, row).startswith("<unk> w1 w2 </s> <user>") for row in rows)
    assert all(row.input_ids.count(context.tokenizer.convert_tokens_to_ids("<user>")) == 3 for row in rows)


def test_a_training_row_is_not_shown_its_own_answer():
    examples = [told(f"w{i} w9", f"w{i + 10}") for i in range(8)]
    context = context_of(examples)
    rows = METHOD.shape(METHOD.prepare(tiny.causal(), POINT, context), examples, context.encoded, POINT, context, training=True)
    for i, row in enumerate(rows):
        assert text(context, row).split().count(f"w{i + 10}") == 1


@pytest.mark.parametrize("room", [30, 40, 60])
def test_the_vectors_take_their_room_of_the_context(room):
    _, _, rows = prepared(context_length=room)
    assert max(len(row.input_ids) for row in rows) <= room - 6


def test_stock_peft_loads_the_vectors_and_finemesh_the_prompt_too(tmp_path):
    tuned, context, rows = prepared()
    loss = evaluate(tuned, rows, "instruct", 0).loss
    METHOD.save(tuned, tmp_path, "base")
    assert {file.name for file in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "prompt.json"}
    stock = PeftModel.from_pretrained(tiny.causal(), str(tmp_path)).eval()
    assert evaluate(stock, rows, "instruct", 0).loss == pytest.approx(loss, abs=1e-6)
    loaded = METHOD.load(tiny.causal(), tmp_path)
    assert METHOD.shape(loaded, context.train, context.encoded, POINT, context, training=False) == rows


@pytest.mark.parametrize(("changes", "words"), [
    ({"instruction": ""}, "the instruction is blank"),
    ({"length": 120}, "beside 120 trained vectors"),
])
def test_refusals(changes, words):
    assert words in str(METHOD.refuses(tiny.causal(), POINT | changes, context_of(tiny.dialogues())))
