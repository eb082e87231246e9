"""A dialogue as pieces of text, each scored or not: by the tokenizer's chat template, or a plain one where it has none.

Templates differ in what they add, trim and leave out, so little is assumed of them: what comes before an answer is what
the template renders when it is asked for one, and the answer with its end of turn is what the whole has after that.
"""

from collections.abc import Sequence
from datetime import datetime

import jinja2
from transformers import PreTrainedTokenizerBase

from finemesh.errors import InputError
from finemesh.tuning.data.examples import Dialogue, Turn

PLAIN = {"system": "{content}\n\n", "user": "### Instruction:\n{content}\n\n",
         "assistant": "### Response:\n{content}{eos}\n\n"}
DATE = datetime(2024, 7, 26)  # templates that print today's date print this one: tokens must not change overnight
DATED = "{% macro strftime_now(layout) %}{{ layout" + "".join(
    f".replace('%{code}', '{DATE.strftime('%' + code)}')" for code in "aAbBdHIjmMpSyY") + " }}{% endmacro %}"
PROBE = "0answer0"  # a text that no template trims or holds itself


def pieces(dialogue: Dialogue, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """Prompt, answer, prompt, answer, ...: (text, whether it is scored). The last piece is the last answer.

    A scored piece is what the model has to write: the answer with its end-of-turn token, not the line end after that.
    A dialogue that ends with the user gets a made-up answer: the pieces before it are the prompt.
    """
    turns = dialogue.turns if dialogue.turns[-1].role == "assistant" else (*dialogue.turns, Turn("assistant", PROBE))
    try:
        return _pieces(turns, tokenizer)
    except jinja2.TemplateError:  # many templates take no system turn
        try:
            return _pieces(_without_system(turns), tokenizer)
        except jinja2.TemplateError as error:
            raise InputError(f"the model's chat template refuses this dialogue: {error}",
                             file=dialogue.place or None) from None


def before_question(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, lead: str = "") -> str:
    """What the template writes before a question that follows `turns`, with `lead` in the question's own turn."""
    asked = [*turns, Turn("user", lead + PROBE)]
    try:
        prompt = _render(asked, tokenizer, ask=True)
    except jinja2.TemplateError:
        prompt = _render(_without_system(asked), tokenizer, ask=True)
    return prompt.rpartition(PROBE)[0]


def takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a system turn may stand before a question."""
    try:
        _render([Turn("system", PROBE), Turn("user", PROBE)], tokenizer, ask=True)
    except jinja2.TemplateError:
        return False
    return True


def _pieces(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    prompt = _render(turns[:-1], tokenizer, ask=True)
    probed = _render([*turns[:-1], Turn("assistant", PROBE)], tokenizer)
    before, _, after = probed.rpartition(PROBE)
    opening, stop = before.removeprefix(prompt), after.rstrip() or tokenizer.eos_token or ""
    whole = _render(turns, tokenizer)
    answer = whole[len(prompt):].rstrip() if whole.startswith(prompt) else turns[-1].content.strip()
    answer += "" if answer.endswith(stop) else stop
    found: list[tuple[str, bool]] = []
    done = 0
    for i, turn in enumerate(turns[:-1]):
        if turn.role == "assistant":
            start, end = _earlier_answer(prompt, _render(turns[:i], tokenizer, ask=True), turn.content, opening)
            if done <= start < end:  # else the template changed it or left it out: nothing to learn from
                end += len(stop) if prompt.startswith(stop, end) else 0
                found += [(prompt[done:start], False), (prompt[start:end], True)]
                done = end
    return [*found, (prompt[done:], False), (answer, True)]


def _earlier_answer(prompt: str, asked: str, content: str, opening: str) -> tuple[int, int]:
    """Start and end in `prompt` of an answer given before; (-1, -1) where it is not there.

    Some templates open the answer that they ask for otherwise than one that was given (with an empty train of thought):
    then the answer starts where the two part.
    """
    start = len(asked)
    if not prompt.startswith(asked):
        start = next((i for i, (a, b) in enumerate(zip(prompt, asked, strict=False)) if a != b), len(prompt))
    shown = (opening + content, opening + content.strip(), content, content.strip())
    return next(((start, start + len(text)) for text in shown if prompt.startswith(text, start)), (-1, -1))


def _render(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, *, ask: bool = False) -> str:
    if tokenizer.chat_template is None:
        eos, first = tokenizer.eos_token or "", tokenizer("")["input_ids"][:1]
        opening = tokenizer.bos_token or "" if first == [tokenizer.bos_token_id] else ""
        body = "".join(PLAIN[turn.role].format(content=turn.content, eos=eos) for turn in turns)
        return opening + body + (PLAIN["assistant"].partition("{content}")[0] if ask else "")
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    template = tokenizer.get_chat_template()
    return str(tokenizer.apply_chat_template(
        messages, chat_template=DATED + template if "strftime_now" in template else template, tokenize=False,
        add_generation_prompt=ask, enable_thinking=False))


def _without_system(turns: Sequence[Turn]) -> list[Turn]:
    """System turns put before the first question."""
    system = [turn.content for turn in turns if turn.role == "system"]
    others = [turn for turn in turns if turn.role != "system"]
    return [Turn("user", "\n\n".join([*system, others[0].content])), *others[1:]]
