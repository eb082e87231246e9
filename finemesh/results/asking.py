"""How a hard prompt (prompt.json) is put before a question without finemesh, as code for the model card.

The lines write the text that finemesh writes, with the tokenizer's chat template; `finemesh predict` also leaves out what
does not fit into the context.
"""

from collections.abc import Mapping
from typing import Any

SELECTIONS = {
    "fixed": ['shown = prompt["demonstrations"][:prompt["k"]]'],
    "random": ["import random", "",
               'shown = random.sample(prompt["demonstrations"], min(prompt["k"], len(prompt["demonstrations"])))'],
    "similar": ["import bm25s", "", "index = bm25s.BM25()",
                'questions = [shown["messages"][0]["content"] for shown in prompt["demonstrations"]]',
                "index.index(bm25s.tokenize(questions, stopwords=[]))",
                "scores = index.get_scores(bm25s.tokenize(question, stopwords=[], return_ids=False)[0])",
                "best = sorted(range(len(questions)), key=lambda i: -scores[i])",
                'shown = [prompt["demonstrations"][i] for i in best[:prompt["k"]]]'],
}
TURNS = """messages = [{"role": "system", "content": prompt["instruction"]}] if prompt["instruction"] else []
for demonstration in shown:
    messages += [turn for turn in demonstration["messages"] if turn["role"] != "system"]
messages.append({"role": "user", "content": question})"""
MESSAGE = r"""written = [prompt["instruction"]] if prompt["instruction"] else []
for demonstration in shown:
    asked, answered = [turn["content"] for turn in demonstration["messages"] if turn["role"] != "system"][-2:]
    written.append(f"Question:\n{asked}\nAnswer:\n{answered}")
messages = [{"role": "user", "content": "\n\n".join([*written, f"Question:\n{question}"])}]"""
ANSWER = r"""if tokenizer.chat_template:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
else:
    layout = {"system": "{}\n\n", "user": "### Instruction:\n{}\n\n",
              "assistant": "### Response:\n{}" + tokenizer.eos_token + "\n\n"}
    text = "".join(layout[turn["role"]].format(turn["content"]) for turn in messages) + "### Response:\n"
inputs = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""


def asking(hyperparameters: Mapping[str, Any]) -> list[str]:
    """Lines of code that ask a question of `model` by `tokenizer`."""
    selection = hyperparameters.get("selection", "fixed")
    lines = ["import json", "", 'question = "What is the capital of France?"',
             'prompt = json.load(open("prompt.json", encoding="utf-8"))', *SELECTIONS[selection]]
    if selection == "similar" and hyperparameters.get("order") != "similar_first":
        lines.append("shown.reverse()  # the most similar nearest to the question")
    return [*lines, *(MESSAGE if hyperparameters.get("template") == "message" else TURNS).splitlines(),
            *ANSWER.splitlines()]
