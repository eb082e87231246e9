"""The card's code shows the model what finemesh shows it."""

from pathlib import Path

import pytest

from finemesh.results.asking import asking
from finemesh.tuning.data.batches import question
from finemesh.tuning.data.examples import Dialogue, Turn
from finemesh.tuning.methods import METHODS
from tests import tiny

ASKED = "w3 w12 w9"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("template", ["turns", "message"])
@pytest.mark.parametrize(("selection", "order"), [("fixed", None), ("similar", "similar_last"), ("similar", "similar_first"),
                                                  ("random", None), (None, None)])
def test_the_code_asks_what_finemesh_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: str | None,
                                          order: str | None, template: str, chat: bool) -> None:
    model, context = tiny.case("llama", "instruct")
    tokenizer, method = tiny.tokenizer(chat), METHODS["in_context"]
    point = {"k": 3, "selection": selection, "template": template, "instruction": "w1 w2"}
    point |= {"order": order} if order else {}
    point = point if selection else {"k": 0, "instruction": "none"}
    tuned = method.prepare(model, point, context)
    method.save(tuned, tmp_path, "base")
    asked = Dialogue((Turn("user", ASKED),))
    [row] = method.shape(tuned, [asked], [question(asked, tokenizer, 64)], point,
                         type(context)("instruct", tokenizer, (), (), 64, 128, 0), training=False)
    monkeypatch.chdir(tmp_path)
    names = {"model": tuned, "tokenizer": tokenizer}
    exec("\n".join(asking(point)).replace("What is the capital of France?", ASKED), names)
    ids = names["inputs"]["input_ids"][0].tolist()
    assert (ids == row.input_ids) if selection != "random" else (abs(len(ids) - len(row.input_ids)) < 12)
