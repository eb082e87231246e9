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

DATE = datetime(2024, 7, 26)  # what templates that print today's date are told: the tokens must not change overnight
PLAIN = {"system": "{content}\n\n", "user": "### Instruction:\n{content}\n\n",
         "assistant": "### Response:\n{content}{eos}\n\n"}
PROBE = "0answer0"  # an answer that no template trims or holds itself


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


def _pieces(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    prompt = _render(turns[:-1], tokenizer, ask=True)
    probed = _render([*turns[:-1], Turn("assistant", PROBE)], tokenizer)
    stop = probed.rpartition(PROBE)[2].rstrip() or tokenizer.eos_token or ""
    whole = _render(turns, tokenizer)
    answer = whole[len(prompt):].rstrip() if whole.startswith(prompt) else turns[-1].content.strip()
    answer += "" if answer.endswith(stop) else stop
    found: list[tuple[str, bool]] = []
    done = 0
    for i, turn in enumerate(turns[:-1]):
        if turn.role == "assistant":
            start, end = _earlier_answer(prompt, _render(turns[:i], tokenizer, ask=True), turn.content)
            if done <= start < end:  # else the template changed it or left it out: nothing to learn from
                end += len(stop) if prompt.startswith(stop, end) else 0
                found += [(prompt[done:start], False), (prompt[start:end], True)]
                done = end
    return [*found, (prompt[done:], False), (answer, True)]


def _earlier_answer(prompt: str, asked: str, content: str) -> tuple[int, int]:
    """Start and end in `prompt` of an answer given before; (-1, -1) where it is not there.

    Some templates open the answer that they ask for otherwise than one that was given (with an empty train of thought):
    then the answer starts where the two part.
    """
    start = len(asked)
    if not prompt.startswith(asked):
        start = next((i for i, (a, b) in enumerate(zip(prompt, asked, strict=False)) if a != b), len(prompt))
    if prompt.startswith(content, start):
        return start, start + len(content)
    shown = content.strip()
    at = start + prompt[start:start + len(content) + 2].find(shown)  # trimmed, or after a space of the template's
    return (start, at + len(shown)) if at >= start else (-1, -1)


def _render(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase, *, ask: bool = False) -> str:
    if tokenizer.chat_template is None:
        eos, first = tokenizer.eos_token or "", tokenizer("")["input_ids"][:1]
        opening = tokenizer.bos_token or "" if first == [tokenizer.bos_token_id] else ""
        body = "".join(PLAIN[turn.role].format(content=turn.content, eos=eos) for turn in turns)
        return opening + body + (PLAIN["assistant"].partition("{content}")[0] if ask else "")
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return str(tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=ask, enable_thinking=False, strftime_now=DATE.strftime))


def _without_system(turns: Sequence[Turn]) -> list[Turn]:
    """System turns put before the first question."""
    system = [turn.content for turn in turns if turn.role == "system"]
    others = [turn for turn in turns if turn.role != "system"]
    return [Turn("user", "\n\n".join([*system, others[0].content])), *others[1:]]
