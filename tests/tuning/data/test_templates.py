"""What is scored, under the chat templates of the field (their texts shortened) and the plain one."""

from collections.abc import Callable
from datetime import datetime

import pytest
from transformers import PreTrainedTokenizerFast

from finemesh.errors import InputError
from finemesh.tuning.data.examples import Dialogue, Turn
from finemesh.tuning.data.templates import pieces

Templated = Callable[[str], PreTrainedTokenizerFast]

ASK = "{% if add_generation_prompt %}"
DEFAULT_SYSTEM = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nBe kind<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}" + ASK + "<|im_start|>assistant\n{% endif %}")
LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}"
    "[INST] {{ m['content'].strip() }} [/INST]{% else %} {{ m['content'].strip() }} {{ eos_token }}"
    "{% endif %}{% endfor %}")
LLAMA_3 = (
    "{{ bos_token }}<|system|>Today: {{ strftime_now('%d %b %Y') }}<|eot|>{% for m in messages %}"
    "<|{{ m['role'] }}|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}" + ASK + "<|assistant|>\n\n{% endif %}")
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end>\n{% endfor %}" + ASK + "<start>model\n{% endif %}")
THINKING = (  # the last answer opens with an empty train of thought, those before it do not
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}" + ASK +
    "<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}")
NO_END = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}" + ASK + "assistant: {% endif %}"
NO_OPENING = (
    "{% for m in messages %}{% if m['role'] == 'user' %}Q: {{ m['content'] }}\n{% else %}A: {{ m['content'] }}</s>"
    "{% endif %}{% endfor %}")
FORGETFUL = (  # an answer that is not the last loses its reasoning
    "{% for m in messages %}{% if m['role'] == 'user' %}Q: {{ m['content'] }}\n{% elif loop.last %}"
    "A: {{ m['content'] }}</s>{% else %}A: {{ m['content'].split('</think>')[-1] }}</s>{% endif %}{% endfor %}"
    + ASK + "A: {% endif %}")
OTHER_OPENING = NO_OPENING + ASK + "Please: {% endif %}"  # the answer asked for opens otherwise than one given
ALL = {"default system": DEFAULT_SYSTEM, "llama 2": LLAMA_2, "llama 3": LLAMA_3, "gemma": GEMMA, "thinking": THINKING,
       "no end of turn": NO_END, "no opening": NO_OPENING, "forgetful": FORGETFUL, "plain": None}


def talk(*contents: str, system: str | None = None) -> Dialogue:
    roles = ("user", "assistant")
    opening = () if system is None else (Turn("system", system),)
    return Dialogue((*opening, *(Turn(roles[i % 2], content) for i, content in enumerate(contents))))


TWO = talk("Hi", "Yo", "Who?", "Me")


@pytest.mark.parametrize(("template", "dialogue", "expected"), [
    (DEFAULT_SYSTEM, talk("Hi", "Yo"), [
        ("<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
        ("Yo<|im_end|>", True)]),
    (DEFAULT_SYSTEM, talk("Hi", " Yo \n", system="Be brief"), [
        ("<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False),
        (" Yo \n<|im_end|>", True)]),
    (LLAMA_2, TWO, [("<s>[INST] Hi [/INST]", False), (" Yo </s>", True),
                    ("[INST] Who? [/INST]", False), (" Me </s>", True)]),
    (LLAMA_2, talk("Hi", "Yo\n", system="Be brief"), [("<s>[INST] Be brief\n\nHi [/INST]", False), (" Yo </s>", True)]),
    (LLAMA_3, TWO, [
        ("<s><|system|>Today: 26 Jul 2024<|eot|><|user|>\n\nHi<|eot|><|assistant|>\n\n", False), ("Yo<|eot|>", True),
        ("<|user|>\n\nWho?<|eot|><|assistant|>\n\n", False), ("Me<|eot|>", True)]),
    (GEMMA, talk("Hi", "Yo", system="Be brief"), [
        ("<start>user\nBe brief\n\nHi<end>\n<start>model\n", False), ("Yo<end>", True)]),
    (THINKING, TWO, [
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False), ("Yo<|im_end|>", True),
        ("\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("Me<|im_end|>", True)]),
    (NO_END, TWO, [("user: Hi\nassistant: ", False), ("Yo", True),
                   ("\nuser: Who?\nassistant: ", False), ("Me</s>", True)]),
    (NO_OPENING, TWO, [("Q: Hi\n", False), ("A: Yo</s>", True), ("Q: Who?\n", False), ("A: Me</s>", True)]),
    (OTHER_OPENING, talk("Hi", " Yo\n"), [("Q: Hi\nPlease: ", False), ("Yo</s>", True)]),
    (FORGETFUL, talk("Hi", "<think>hm</think>Yo", "Who?", "<think>so</think>Me"), [
        ("Q: Hi\nA: Yo</s>Q: Who?\nA: ", False), ("<think>so</think>Me</s>", True)]),
    (DEFAULT_SYSTEM, talk("assistant", "assistant", "assistant", "assistant", system="assistant"), [
        ("<|im_start|>system\nassistant<|im_end|>\n<|im_start|>user\nassistant<|im_end|>\n<|im_start|>assistant\n",
         False),
        ("assistant<|im_end|>", True), ("\n<|im_start|>user\nassistant<|im_end|>\n<|im_start|>assistant\n", False),
        ("assistant<|im_end|>", True)]),
], ids=range(12))
def test_templates(templated: Templated, template: str, dialogue: Dialogue, expected: list[tuple[str, bool]]) -> None:
    assert pieces(dialogue, templated(template)) == expected


@pytest.mark.parametrize("template", ALL.values(), ids=ALL)
def test_the_pieces_are_what_the_template_renders_and_do_not_depend_on_the_last_answer(
        templated: Templated, plain_tokenizer: PreTrainedTokenizerFast, template: str | None) -> None:
    tokenizer = plain_tokenizer if template is None else templated(template)
    if template is not None:
        messages = [{"role": turn.role, "content": turn.content} for turn in TWO.turns]
        whole = tokenizer.apply_chat_template(messages, tokenize=False, enable_thinking=False)
        whole = whole.replace(f"{datetime.now():%d %b %Y}", "26 Jul 2024")
        text = "".join(part for part, _ in pieces(TWO, tokenizer))
        assert text.removesuffix("</s>") == whole.rstrip().removesuffix("</s>")
    asking = Dialogue(TWO.turns[:-1])
    assert pieces(asking, tokenizer)[:-1] == pieces(TWO, tokenizer)[:-1]


def test_the_plain_template(plain_tokenizer: PreTrainedTokenizerFast, bos_tokenizer: PreTrainedTokenizerFast) -> None:
    parts = [("Be brief\n\n### Instruction:\nHi {x}\n\n### Response:\n", False), ("Yo</s>", True),
             ("\n\n### Instruction:\nWho?\n\n### Response:\n", False), ("Me</s>", True)]
    dialogue = talk("Hi {x}", "Yo", "Who?", "Me", system="Be brief")
    assert pieces(dialogue, plain_tokenizer) == parts
    assert pieces(dialogue, bos_tokenizer) == [("<s>" + parts[0][0], False), *parts[1:]]


def test_a_dialogue_that_the_template_refuses(templated: Templated) -> None:
    with pytest.raises(InputError, match=r"d\.jsonl, line 3: .* refuses this dialogue: never"):
        pieces(Dialogue(TWO.turns, "d.jsonl, line 3"), templated("{{ raise_exception('never') }}"))
