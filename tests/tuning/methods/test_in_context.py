"""In-context prompting: what is shown before a row, what never is, and that a saved prompt shows the same elsewhere."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from finemesh.tuning.data.batches import encode, question, token_ids
from finemesh.tuning.data.demonstrations import Demonstrations, asked
from finemesh.tuning.data.examples import Dialogue, Turn
from finemesh.tuning.data.hard_prompt import HardPrompt
from finemesh.tuning.evaluation.evaluation import evaluate
from finemesh.tuning.evaluation.generation import answers
from finemesh.tuning.kernels.packing import common_start
from finemesh.tuning.methods import METHODS, Context
from tests import tiny

METHOD = METHODS["in_context"]
POINT = {"k": 3, "selection": "similar", "order": "similar_last", "template": "turns", "instruction": "none"}
CHOICES = [(selection, template, instruction) for selection in ("fixed", "random", "similar")
           for template in ("turns", "message") for instruction in ("none", "w23 w23")]


def told(question: str, answer: str, system: str = "") -> Dialogue:
    turns = (Turn("user", question), Turn("assistant", answer))
    return Dialogue((Turn("system", system), *turns) if system else turns)


def context_of(examples: list[Dialogue], *, chat: bool = True, max_length: int = 64, context_length: int = 128,
               seed: int = 0) -> Context:
    words = tiny.tokenizer(chat)
    rows = [encode(example, words, max_length, "instruct") for example in examples]
    assert all(row is not None for row in rows)
    longest = max(len(row.input_ids) for row in rows)
    return Context("instruct", words, examples, rows, max_length, context_length, seed, longest)


def shown(context: Context, point: dict, examples=None, rows=None):
    tuned = METHOD.prepare(tiny.causal(), point, context)
    found = METHOD.shape(tuned, examples or context.train, rows or context.encoded, point, context, training=False)
    return list(found), tuned


def targets(rows) -> list[list[int]]:
    return [[token for token, scored in zip(row.input_ids, row.scored, strict=True) if scored] for row in rows]


def text(context: Context, row) -> str:
    return context.tokenizer.decode(row.input_ids)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize(("selection", "template", "instruction"), CHOICES)
def test_the_same_tokens_are_scored_after_a_natural_text(selection, template, instruction, chat):
    context = context_of(tiny.dialogues(), chat=chat)
    rows, tuned = shown(context, POINT | {"selection": selection, "template": template, "instruction": instruction})
    assert targets(rows) == targets(context.encoded)
    assert tuned.left_out == 0
    for row, plain in zip(rows, context.encoded, strict=True):
        assert len(row.input_ids) > len(plain.input_ids)
        assert token_ids(text(context, row), context.tokenizer) == row.input_ids
        assert ("w23 w23" in text(context, row)) == (instruction != "none")


def test_demonstrations_are_earlier_turns_or_written_into_the_question():
    context = context_of([told("w0 w9", "w1"), told("w0 w8", "w2"), told("w5", "w6")])
    turns, _ = shown(context, POINT | {"k": 1, "instruction": "w3"})
    assert text(context, turns[0]) == ("<unk> w3 </s> <user> w0 w8 </s> <assistant> w2 </s> "
                                       "<user> w0 w9 </s> <assistant> w1 </s>")
    message, _ = shown(context, POINT | {"k": 1, "instruction": "w3", "template": "message"})
    assert text(context, message[0]) == "<user> w3 <unk> w0 w8 <unk> w2 <unk> w0 w9 </s> <assistant> w1 </s>"


def test_the_rows_own_system_turn_stays_before_the_instruction():
    context = context_of([told("w0", "w1", system="w7"), told("w2", "w3")])
    rows, _ = shown(context, POINT | {"k": 1, "instruction": "w9"})
    assert text(context, rows[0]) == "<unk> w7 w9 </s> <user> w2 </s> <assistant> w3 </s> <user> w0 </s> <assistant> w1 </s>"


@pytest.mark.parametrize("selection", ["fixed", "random", "similar"])
def test_a_row_never_demonstrates_itself_nor_do_other_answers_to_its_question(selection):
    rows = [told(f"w{i} w9", answer) for i in range(6) for answer in (f"w{i}", "w20", "w21")]
    rows += [told("W0   w9", "w22"), told("w1 w9", "w23", system="w12")]  # other case and spaces, another system turn
    context = context_of(rows, max_length=30)
    tuned = METHOD.prepare(tiny.causal(), POINT | {"k": 4, "selection": selection}, context)
    for example in rows:
        chosen = tuned.hard_prompt._chosen(example)
        assert len(chosen) == 4
        assert asked(example) not in {asked(dialogue) for dialogue in chosen}
        assert not {dialogue.key for dialogue in chosen} & {example.key}
        assert len({asked(dialogue) for dialogue in chosen}) == 4


def test_blank_questions_are_told_apart_by_their_whole():
    context = context_of([told("", f"w{i}") for i in range(5)])
    rows, _ = shown(context, POINT)
    for i, row in enumerate(rows):
        assert text(context, row).split().count(f"w{i}") == 1


def test_similar_ones_are_shown_nearest_to_the_question():
    examples = [told("w1 w2 w3 w4", "w20"), told("w1 w2 w3 w9", "w21"), told("w1 w2 w10 w11", "w22"),
                *(told(f"w{i} w{i + 1}", "w23") for i in range(12, 20))]
    context = context_of(examples)
    last, first = (shown(context, POINT | {"k": 2, "order": order})[0][0] for order in ("similar_last", "similar_first"))
    assert text(context, last).index("w21") > text(context, last).index("w22") > 0
    assert text(context, first).index("w21") < text(context, first).index("w22")


def test_similarity_reads_words_of_every_script():
    pool = Demonstrations((told("今天天气怎么样", "a"), told("Wo ist der Bahnhof?", "b"), told("你喜欢吃苹果吗", "c")), 0)
    assert pool.similar(told("苹果好吃吗", ""), 1)[0].answer == "c"
    assert pool.similar(told("BAHNHOF", ""), 1)[0].answer == "b"
    assert len(pool.similar(told("?!", ""), 2)) == 2
    assert len(Demonstrations((told("?!", "a"), told("...", "b")), 0).similar(told("?!", ""), 2)) == 1


@pytest.mark.parametrize("selection", ["fixed", "random", "similar"])
def test_the_seed_decides(selection):
    context, point = context_of(tiny.dialogues(200)), POINT | {"selection": selection}
    first, again, other = (shown(replace(context, seed=seed), point)[0] for seed in (1, 1, 2))
    assert first == again
    assert first != other or selection == "similar"


def test_fixed_ones_come_first_and_are_common_to_the_rows():
    context = context_of(tiny.dialogues(200)[:60])
    rows, tuned = shown(context, POINT | {"selection": "fixed", "k": 4})
    fixed = [asked(dialogue) for dialogue in tuned.hard_prompt.demonstrations.dialogues[:4]]
    others = [row.input_ids for example, row in zip(context.train, rows, strict=True) if asked(example) not in fixed]
    shortest = min(map(len, others))
    shared = common_start(torch.tensor([ids[:shortest] for ids in others]), torch.tensor([shortest] * len(others)))
    assert shared >= sum(len(tiny_row.input_ids) for tiny_row in (
        encode(dialogue, context.tokenizer, 64, "instruct") for dialogue in tuned.hard_prompt.demonstrations.dialogues[:4]))
    random, _ = shown(context, POINT | {"selection": "random", "k": 4})
    assert random[0].input_ids[:shared] != random[1].input_ids[:shared]


@pytest.mark.parametrize("room", [10, 20, 30, 45, 60, 90])
def test_what_does_not_fit_is_left_out_the_least_useful_first(room):
    context = replace(context_of(tiny.dialogues()), context_length=room)
    point = POINT | {"k": 8, "order": "similar_first", "instruction": "w1 w2 w3"}
    rows, tuned = shown(context, point)
    everything, _ = shown(replace(context, context_length=1000), point)
    assert all(len(row.input_ids) <= max(room, len(plain.input_ids))
               for row, plain in zip(rows, context.encoded, strict=True))
    assert targets(rows) == targets(context.encoded)
    assert tuned.left_out > 0
    assert METHOD.counts(tuned) == {"demonstrations_left_out": tuned.left_out}
    for row, whole, plain in zip(rows, everything, context.encoded, strict=True):
        added = len(row.input_ids) - len(plain.input_ids)
        assert row.input_ids == whole.input_ids[:added] + plain.input_ids


def test_a_question_is_shown_as_its_row_is_also_where_the_context_is_short():
    context = context_of(tiny.dialogues())
    for room in (40, 128):
        narrow, point = replace(context, context_length=room), POINT | {"k": 8}
        rows, _ = shown(narrow, point)
        questions = [question(Dialogue(e.turns[:-1]), context.tokenizer, 64) for e in context.train]
        asked_rows, _ = shown(narrow, point, [Dialogue(e.turns[:-1]) for e in context.train], questions)
        for row, ask in zip(rows, asked_rows, strict=True):
            assert row.input_ids[:row.scored.index(True)] == ask.input_ids
            assert not any(ask.scored)


def test_a_row_that_max_length_cuts_is_no_demonstration():
    rows = [told(f"w{i}", f"w{i}" if i % 2 else f"w{i} " * 9) for i in range(8)]
    _, tuned = shown(context_of(rows, max_length=14), POINT)
    assert {dialogue.answer for dialogue in tuned.hard_prompt.demonstrations.dialogues} == {"w1", "w3", "w5", "w7"}
    _, tuned = shown(context_of(rows[::2], max_length=14), POINT)
    assert tuned.hard_prompt.demonstrations.dialogues == ()


@pytest.mark.parametrize(("changes", "words"), [
    ({"instruction": "  "}, "the instruction is blank"),
    ({"k": 24}, "more than there are: beside the row itself, 23 training rows"),
    ({"k": 15}, r"15 demonstrations of about \d+ tokens before a row of \d+ are \d+ tokens.* context has 128: at most \d+ fit"),
    ({"k": 3, "instruction": "w1 " * 200}, "none fits"),
    ({"k": 0, "instruction": "w1 " * 200}, "a row of 2.. tokens"),
])
def test_settings_that_cannot_be_used_are_refused_with_the_mend(changes, words):
    examples = [told(f"w{i} w{i} w{i} w{i}", "w1 w2 w3") for i in range(24)]
    reason = METHOD.refuses(tiny.causal(), POINT | changes, context_of(examples))
    assert reason is not None
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(reason)


def test_no_demonstrations_and_no_instruction_show_the_row_itself():
    context = context_of(tiny.dialogues())
    rows, _ = shown(context, {"k": 0, "instruction": "none"})
    assert rows == list(context.encoded)
    assert METHOD.refuses(tiny.causal(), {"k": 0, "instruction": "none"}, context) is None


def test_other_tasks_are_told_what_to_use_instead():
    assert "with task: instruct the labels can be answers" in str(METHOD.unfit(tiny.classifier("bert"), "classify"))
    assert METHOD.unfit(tiny.causal(), "instruct") is None


def test_a_fresh_process_shows_the_same_without_the_training_rows(tmp_path):
    context = context_of(tiny.dialogues(200)[:60])
    points = {selection: POINT | {"selection": selection} for selection in ("fixed", "random", "similar")}
    here = {}
    for selection, point in points.items():
        rows, tuned = shown(context, point)
        METHOD.save(tuned, tmp_path / selection, "base")
        assert [file.name for file in (tmp_path / selection).iterdir()] == ["prompt.json"]
        assert len(HardPrompt.load(tmp_path / selection).demonstrations.dialogues) == (
            4 if selection == "fixed" else len(tuned.hard_prompt.demonstrations.dialogues))
        loaded = METHOD.load(tiny.causal(), tmp_path / selection)
        assert evaluate(loaded, rows, "instruct", 0).loss == evaluate(tuned, rows, "instruct", 0).loss
        here[selection] = [[row.input_ids for row in rows], answers(tuned, context.tokenizer, rows[:2], 4)]
    script = f"""
import json
from pathlib import Path
from dataclasses import replace
from finemesh.tuning.evaluation.generation import answers
from tests import tiny
from tests.tuning.methods.test_in_context import context_of, METHOD
context = context_of(tiny.dialogues(200)[:60])
bare = replace(context, train=(), encoded=(), seed=99)
found = {{}}
for selection, point in {points!r}.items():
    tuned = METHOD.load(tiny.causal(), Path({str(tmp_path)!r}) / selection)
    rows = METHOD.shape(tuned, context.train, context.encoded, point, bare, training=False)
    found[selection] = [[row.input_ids for row in rows], answers(tuned, context.tokenizer, rows[:2], 4)]
print(json.dumps(found))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) == here
