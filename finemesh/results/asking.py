"""How a hard prompt (prompt.json) is put before a question without finemesh, as code for the model card.

The lines write the text that finemesh writes, with the tokenizer's chat template; `finemesh predict` also leaves out what
does not fit into the context.
"""

from collections.abc import Mapping
from typing import Any

WORD = r"(?u)[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+"  # as demonstrations.py has it
ASKED = r"""def asked(shown):
    turns = [turn for turn in shown["messages"][:-1] if turn["role"] != "system"]
    whole = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    return turns[0]["content"] if len(turns) == 1 else whole"""
SELECTIONS = {
    "fixed": ['ranked = prompt["demonstrations"]'],
    "random": ["import random", "", 'ranked = random.sample(prompt["demonstrations"], len(prompt["demonstrations"]))'],
    "similar": ["import bm25s", "", f'words = r"{WORD}"',
                'texts = [question, *map(asked, prompt["demonstrations"])]',
                "texts = bm25s.tokenize(texts, token_pattern=words, stopwords=[], return_ids=False, show_progress=False)",
                'texts = [text or [" "] for text in texts]',
                "index = bm25s.BM25()",
                "index.index(texts[1:], show_progress=False)",
                "scores = index.get_scores(texts[0])",
                'ranked = [prompt["demonstrations"][i] for i in sorted(range(len(scores)), key=lambda i: -scores[i])]'],
}
OTHERS = """same = question.casefold().split()
firsts = [next(turn["content"] for turn in shown["messages"] if turn["role"] == "user") for shown in ranked]
others = [shown for shown, first in zip(ranked, firsts) if first.casefold().split() != same]
shown = others[:prompt["k"]]"""
TURNS = """messages = [{"role": "system", "content": prompt["instruction"]}] if prompt["instruction"] else []
for demonstration in shown:
    messages += [turn for turn in demonstration["messages"] if turn["role"] != "system"]
messages.append({"role": "user", "content": question})"""
LED = r"""messages = []
for demonstration in shown:
    messages += [turn for turn in demonstration["messages"] if turn["role"] != "system"]
messages.append({"role": "user", "content": question})
if prompt["instruction"]:  # this chat template takes no system turn
    messages[0] = {"role": "user", "content": prompt["instruction"] + "\n\n" + messages[0]["content"]}"""
MESSAGE = r"""written = [prompt["instruction"]] if prompt["instruction"] else []
for demonstration in shown:
    written.append(f"Question:\n{asked(demonstration)}\nAnswer:\n{demonstration['messages'][-1]['content']}")
messages = [{"role": "user", "content": "\n\n".join([*written, f"Question:\n{question}"])}]"""
ANSWER = r"""if tokenizer.chat_template:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
else:
    layout = {"system": "{}\n\n", "user": "### Instruction:\n{}\n\n",
              "assistant": "### Response:\n{}" + tokenizer.eos_token + "\n\n"}
    text = "".join(layout[turn["role"]].format(turn["content"]) for turn in messages) + "### Response:\n"
inputs = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""


def asking(hyperparameters: Mapping[str, Any], *, system: bool = True) -> list[str]:
    """Lines of code that ask a question of `model` by `tokenizer`, whose chat template takes system turns or does not."""
    selection = hyperparameters.get("selection")
    lines = ["import json", "", 'question = "What is the capital of France?"',
             'prompt = json.load(open("prompt.json", encoding="utf-8"))']
    lines += [*ASKED.splitlines(), "", *SELECTIONS[selection], *OTHERS.splitlines()] if selection else ["shown = []"]
    if selection == "similar" and hyperparameters.get("order") != "similar_first":
        lines.append("shown.reverse()  # the most similar nearest to the question")
    written = MESSAGE if hyperparameters.get("template") == "message" else TURNS if system else LED
    return [*lines, *written.splitlines(), *ANSWER.splitlines()]
