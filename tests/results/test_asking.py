"""The card's code shows the model what finemesh shows it."""

import json
from pathlib import Path
from typing import Any

import pytest

from finemesh.results.asking import ANSWER, WORD, asking
from finemesh.tuning.data import demonstrations
from finemesh.tuning.data.batches import question
from finemesh.tuning.data.demonstrations import Demonstrations
from finemesh.tuning.data.examples import Dialogue, Turn
from finemesh.tuning.data.hard_prompt import HardPrompt
from finemesh.tuning.data.templates import takes_system
from finemesh.tuning.methods import METHODS
from tests import tiny
from tests.tuning.data.test_templates import THINKING

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + tiny.TEMPLATE
ASKED = "w3 w12 w9"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("chat", [tiny.TEMPLATE, THINKING, NO_SYSTEM, None],
                         ids=["chat", "thinking", "no system", "plain"])
@pytest.mark.parametrize("template", ["turns", "message"])
@pytest.mark.parametrize(("selection", "order"), [("fixed", None), ("similar", "similar_last"), ("similar", "similar_first"),
                                                  ("random", None), (None, None)])
def test_the_code_asks_what_finemesh_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: str | None,
                                          order: str | None, template: str, chat: str | None) -> None:
    model, context = tiny.case("llama", "instruct")
    tokenizer, method = tiny.tokenizer(), METHODS["in_context"]
    tokenizer.chat_template = chat
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
    code = "\n".join(asking(point, system=takes_system(tokenizer)))
    exec(code.replace("What is the capital of France?", ASKED), names)
    ids = names["inputs"]["input_ids"][0].tolist()
    assert (ids == row.input_ids) if selection != "random" else (abs(len(ids) - len(row.input_ids)) < 12)


def told(*contents: str, system: str = "") -> Dialogue:
    turns = (Turn("assistant" if i % 2 else "user", content) for i, content in enumerate(contents))
    return Dialogue((*([Turn("system", system)] if system else []), *turns))


POOL = (told("capital of Spain", "Madrid", system="Be helpful: what is the capital?"), told("is 9 x", "no"), told("...", "?"),
        told("boil an egg", "6 min"), told("capital of France please", "Paris", system="Be helpful"), told("5 + 3", "8"),
        told("is 7 a prime", "yes"), told("Hello", "Yes?", "What is 7 x 5", "35"), told("你喜欢吃苹果吗", "是"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("selection", ["fixed", "similar"])
@pytest.mark.parametrize("template", ["turns", "message"])
@pytest.mark.parametrize("asked", ["What is the capital of France?", "9 x 5", "苹果好吃吗", "?!", "unheard of", "Is  9 X",
                                   "hello"])
def test_the_code_chooses_what_finemesh_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: str, template: str,
                                                asked: str) -> None:
    pool = Demonstrations(POOL, 0)
    chosen = getattr(pool, selection)(told(asked), 3)[::-1 if selection == "similar" else 1]
    HardPrompt(3, selection, "similar_last", template, "", 0, pool).save(tmp_path)
    monkeypatch.chdir(tmp_path)
    code = "\n".join(asking({"k": 3, "selection": selection, "template": template})).removesuffix(ANSWER)
    names: dict[str, Any] = {}
    exec(code.replace('"What is the capital of France?"', json.dumps(asked)), names)
    if template == "turns":
        assert names["messages"][:-1] == [
            {"role": turn.role, "content": turn.content} for shown in chosen for turn in shown.turns if turn.role != "system"]
    else:
        blocks = [f"Question:\n{shown.prompt}\nAnswer:\n{shown.answer}\n\n" for shown in chosen]
        assert names["messages"] == [{"role": "user", "content": "".join(blocks) + f"Question:\n{asked}"}]


def test_words_are_found_as_finemesh_finds_them() -> None:
    assert WORD == demonstrations.WORD
