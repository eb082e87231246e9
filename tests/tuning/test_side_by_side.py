"""Parts of a batch at the same time: the same losses and gradients, the same numbers every time, nothing left behind."""

import threading
from contextvars import ContextVar

import numba
import pytest
import torch
from accelerate import Accelerator

from finemesh.tuning import gradients
from finemesh.tuning.data.batches import Encoded
from finemesh.tuning.evaluation import evaluation
from finemesh.tuning.evaluation.evaluation import evaluate
from finemesh.tuning.gradients import Gradients
from finemesh.tuning.kernels import common_share, runs_in_threads
from finemesh.tuning.kernels.compiled import thread_safe
from finemesh.tuning.kernels.pointwise import rms_norm
from finemesh.tuning.methods import METHODS
from finemesh.tuning.side_by_side import SIDES, side_by_side, sides
from finemesh.tuning.training import Plan, fine_tune
from tests import tiny

POINT = {"variant": "lora", "rank": 4, "alpha_over_rank": 2.0, "dropout": 0.0, "layers": "all", "learning_rate": 1e-2}
SETTING = ContextVar("SETTING", default="none")


@pytest.fixture
def two_threads():
    rms_norm(torch.ones(1, 8), torch.ones(8), 1e-6, torch.float32)  # numba sets the number itself when it begins
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def row(length):
    return Encoded(list(range(length)), [True] * length)


def tuned_model(name="lora", point=POINT, kind="llama"):
    model, context = tiny.case(kind, "instruct")
    torch.manual_seed(0)
    return METHODS[name].prepare(model, point, context), context


def trained(folder, name="lora", point=POINT, **changes):
    folder.mkdir()
    tuned, context = tuned_model(name, point)
    plan = Plan("instruct", 4, 4, 8, 0, 0, **changes)
    fine_tune(tuned, METHODS[name], point, context.encoded, plan, Accelerator(cpu=True), lambda: 1.0, folder)
    return METHODS[name].state(tuned)


def counting(monkeypatch, module):
    """How many items each call was given."""
    counts = []

    def counted(call, items):
        counts.append(len(items))
        return side_by_side(call, items)

    monkeypatch.setattr(module, "side_by_side", counted)
    return counts


def test_every_item_has_a_thread_and_a_share_of_the_processor_s(two_threads):
    meeting = threading.Barrier(SIDES)

    def call(item):
        meeting.wait(30)  # only if all are there at the same time
        return item, torch.get_num_threads(), SETTING.get(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")

    token = SETTING.set("here")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = side_by_side(call, ["a", "b"])
    SETTING.reset(token)
    assert found == [("a", 1, "here", False, True), ("b", 1, "here", False, True)]
    assert torch.get_num_threads() == 2


def test_what_a_part_raises_is_raised_when_all_have_ended(two_threads):
    ended = []

    def call(item):
        if item == 0:
            raise ValueError("the first")
        ended.append(item)

    with pytest.raises(ValueError, match="the first"):
        side_by_side(call, [0, 1])
    assert ended == [1]
    assert torch.get_num_threads() == 2


def test_sides_have_all_rows_and_about_as_many_tokens():
    rows = [row(length) for length in (9, 3, 4, 2, 8, 5)]
    parts = sides(rows)
    assert sorted(len(each.input_ids) for part in parts for each in part) == [2, 3, 4, 5, 8, 9]
    tokens = [sum(len(each.input_ids) for each in part) for part in parts]
    assert max(tokens) - min(tokens) <= 2
    assert sides(rows[:1]) == [rows[:1]]


@pytest.mark.parametrize(("name", "changes"), [("lora", {}), ("lora", {"accumulation": 2}), ("prompt", {}), ("sift", {})])
def test_training_is_the_same(two_threads, tmp_path, monkeypatch, name, changes):
    point = POINT if name == "lora" else {**METHODS[name].reference, **({"rank": 2} if name == "sift" else {})}
    monkeypatch.setattr(gradients, "LIGHT", 0.0)
    whole = trained(tmp_path / "whole", name, point, **changes)
    monkeypatch.setattr(gradients, "LIGHT", 1.0)
    monkeypatch.setattr(gradients, "AGAIN", 1.0)
    counts = counting(monkeypatch, gradients)
    parts, again = (trained(tmp_path / folder, name, point, **changes) for folder in ("parts", "again"))
    assert set(counts) == {SIDES}
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-3, atol=1e-5)
        assert torch.equal(parts[key], again[key])


def test_evaluation_is_the_same(two_threads, monkeypatch):
    tuned, context = tuned_model()
    monkeypatch.setattr(evaluation, "EVALUATION_TOKENS", 64)
    counts = counting(monkeypatch, evaluation)
    beside = evaluate(tuned, context.encoded, "instruct", 0)
    torch.set_num_threads(1)
    alone = evaluate(tuned, context.encoded, "instruct", 0)
    assert SIDES in counts
    torch.testing.assert_close(torch.tensor(beside.row_losses), torch.tensor(alone.row_losses), rtol=1e-5, atol=1e-6)
    assert beside.row_weights == alone.row_weights


def test_long_rows_are_evaluated_one_after_the_other(two_threads, monkeypatch):
    tuned, context = tuned_model()
    longest = max(len(row.input_ids) for row in context.encoded)
    monkeypatch.setattr(evaluation, "EVALUATION_TOKENS", SIDES * longest - 1)
    counts = counting(monkeypatch, evaluation)
    evaluate(tuned, context.encoded, "instruct", 0)
    assert set(counts) == {1}


def test_only_where_a_model_is_not_changed_on_the_way_and_nothing_is_drawn(two_threads):
    tuned, _ = tuned_model()
    assert runs_in_threads(tuned.train(), 32)
    dropping, _ = tuned_model(point={**POINT, "dropout": 0.2})
    assert not runs_in_threads(dropping.train(), 32)
    assert runs_in_threads(dropping.eval(), 32)
    other, _ = tuned_model(kind="gpt2")
    assert not runs_in_threads(other, 32)
    torch.set_num_threads(1)
    assert not runs_in_threads(tuned, 32)


def test_only_where_numba_s_layer_bears_it(two_threads, monkeypatch):
    tuned, _ = tuned_model()
    assert runs_in_threads(tuned, 32)
    thread_safe.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(numba, "threading_layer", lambda: "workqueue")
        assert not runs_in_threads(tuned, 32)
    thread_safe.cache_clear()


def test_gradients_as_large_as_the_model_are_not_held_twice(two_threads, tmp_path, monkeypatch):
    counts = counting(monkeypatch, gradients)
    trained(tmp_path / "full", "full", METHODS["full"].reference)
    assert not counts


def test_rows_that_share_much_stay_together(two_threads, monkeypatch):
    tuned, _ = tuned_model()
    soft, _ = tuned_model("prompt", METHODS["prompt"].reference | {"length": 5})
    alike, different = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7, 8]], [[1] * 30, [2] * 30]
    assert common_share(tuned, alike) == 4 / 8
    assert common_share(soft, alike) == 9 / 13
    assert common_share(tuned, different) == 0
    counts = counting(monkeypatch, gradients)
    summed = Gradients(tuned, "instruct", 0, Accelerator(cpu=True), 32)
    for ids in (alike, different):
        summed.add([Encoded(row, [False] + [True] * (len(row) - 1)) for row in ids], 1.0)
    assert counts == [SIDES]
