"""README.md beside the winner: a model card that says what it is, how to load it without finemesh, what it reached.

The page is a function of the content alone: no clock, no path of this machine.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import yaml

from finemesh.results import words

CLASSES = {"instruct": "AutoModelForCausalLM", "classify": "AutoModelForSequenceClassification",
           "regress": "AutoModelForSequenceClassification"}
PIPELINES = {"instruct": "text-generation", "classify": "text-classification", "regress": "text-classification"}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Result(TypedDict):
    loss: float | None
    low: float | None
    high: float | None
    metrics: NotRequired[Mapping[str, float]]


class Content(TypedDict):
    """What a card says. `kind` is how the folder loads: a PEFT adapter, a transformers folder, or a prompt.json."""

    name: str  # of the run
    base_model: str  # as anyone can load it
    task: str
    kind: Literal["adapter", "transformers", "prompt"]
    method: str
    hyperparameters: Mapping[str, Any]
    steps: int
    batch_size: int
    seed: int  # of the weights in the folder
    data: str  # where the rows came from
    data_hash: str
    rows: Mapping[str, int]  # train, validation, test
    optimizer: str
    trials: int
    seconds: float
    untuned: Result
    reference: Mapping[str, Result]
    winner: Result
    versions: Mapping[str, str]
    labels: NotRequired[int]  # of a classification
    max_length: NotRequired[int]


def write_card(folder: Path, content: Content) -> Path:
    path = folder / "README.md"
    temporary = path.with_name(f".README.md.{os.getpid()}")
    try:
        temporary.write_text(card(content), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def card(content: Content) -> str:
    parts = (front_matter(content), introduction(content), loading(content), results(content), found(content),
             settings(content), limits(content))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def front_matter(content: Content) -> str:
    """The hub's metadata; a base model that is not on the hub has no place in it."""
    fields: dict[str, Any] = {"library_name": "peft" if content["kind"] == "adapter" else "transformers",
                              "pipeline_tag": PIPELINES[content["task"]], "tags": ["finemesh", content["method"]]}
    if HUB_NAME.fullmatch(content["base_model"]):
        relation = {"adapter": "adapter", "transformers": "finetune"}.get(content["kind"])
        fields |= {"base_model": content["base_model"]}
        fields |= {"base_model_relation": relation} if relation else {}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def introduction(content: Content) -> str:
    gain = ""
    before, after = content["untuned"]["loss"], content["winner"]["loss"]
    if before is not None and after is not None:
        verb = "brings" if after < before else "changes"
        gain = f" It {verb} the loss on the test rows from {words.loss(before)} to {words.loss(after)}."
    return f"""# {inline(content["name"])}: {content["method"]} for {inline(content["base_model"])}

`{content["base_model"]}`, fine-tuned with {content["method"]} on {inline(content["data"])} by finemesh, which chose the
method and its settings by measurement.{gain}"""


def loading(content: Content) -> str:
    return {"adapter": adapter_code, "transformers": folder_code, "prompt": prompt_code}[content["kind"]](content)


def adapter_code(content: Content) -> str:
    name = CLASSES[content["task"]]
    count = 1 if content["task"] == "regress" else content.get("labels")
    labels = "" if content["task"] == "instruct" else f", num_labels={count}"
    return f"""## Load it

With plain `transformers` and `peft`; "." is this folder.

```python
from peft import PeftModel
from transformers import {name}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
base = {name}.from_pretrained({content["base_model"]!r}{labels})
model = PeftModel.from_pretrained(base, ".").eval()
{usage(content)}```"""


def folder_code(content: Content) -> str:
    name = CLASSES[content["task"]]
    return f"""## Load it

With plain `transformers`; "." is this folder.

```python
from transformers import {name}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = {name}.from_pretrained(".").eval()
{usage(content)}```"""


def prompt_code(content: Content) -> str:
    return f"""## Use it

Nothing is trained: `prompt.json` in this folder is what is put before each question to `{content["base_model"]}`."""


def usage(content: Content) -> str:
    if content["task"] == "instruct":
        return """
messages = [{"role": "user", "content": "What is the capital of France?"}]
if tokenizer.chat_template:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
else:
    text = messages[0]["content"]
inputs = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""
    last = "model.config.id2label[logits.argmax(-1).item()]" if content["task"] == "classify" else "logits.item()"
    return f"""
logits = model(**tokenizer("some text", return_tensors="pt")).logits
print({last})
"""


def results(content: Content) -> str:
    rows: list[tuple[str, Result]] = [("untuned model", content["untuned"])]
    rows += [(f"{method}, reference settings", result) for method, result in content["reference"].items()]
    rows.append((f"**{content['method']}, this one**", content["winner"]))
    lines = [f"| {title} | {words.loss(result['loss'])} | {words.interval(result) or '–'} | "
             f"{words.metrics(result.get('metrics')) or '–'} |" for title, result in rows]
    table = "\n".join(["| | test loss | 95 % interval | |", "|---|---:|---|---|", *lines])
    return f"""## What it reached

On {words.count(content["rows"].get("test", 0), "row")} that neither training nor the search used. {words.LOSS_WORDS[content["task"]]}
Intervals are bootstrapped over rows and seeds; the losses are means over seeds, this folder holds the weights of one.

{table}"""


def found(content: Content) -> str:
    rows = ", ".join(f"{count:,} {split}" for split, count in content["rows"].items())
    return f"""## How it was found

{words.count(content["trials"], "trial")} by the optimizer {content["optimizer"]} in {words.duration(content["seconds"])}; the best ones were
repeated on fresh seeds, and the best mean won. Data: {inline(content["data"])} ({rows} rows after deduplication, split by the
hash of the prompt), sha256 `{content["data_hash"]}`."""


def settings(content: Content) -> str:
    pairs: dict[str, Any] = {"method": content["method"], **content["hyperparameters"], "steps": content["steps"],
                             "batch_size": content["batch_size"], "seed": content["seed"]}
    if "max_length" in content:
        pairs["max_length"] = content["max_length"]
    lines = "\n".join(f"| {words.name(name)} | {words.setting(value)} |" for name, value in pairs.items())
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return f"""## Settings

| | |
|---|---|
{lines}

Versions: {versions}."""


def limits(content: Content) -> str:
    return f"""## Limits

It was measured on rows like those it was trained on: how it does on others is not known. What the base model gets wrong or has
learned of bias it still has, and its licence applies. A short budget ({content["steps"]} steps a trial) favours methods that learn fast."""


def inline(text: str) -> str:
    """Text of the user in Markdown: on one line, without a meaning of its own."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(str(text).split()))
