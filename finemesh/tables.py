"""Documents of the API as tables in a terminal: one run, the check of a config, the methods."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finemesh.results import words


def print_outcome(outcome: Mapping[str, Any], console: Console) -> None:
    trained = f"{outcome['trained_tokens']:,} tokens in {words.count(outcome['steps'], 'step')}"
    rows = {
        "method": outcome["method"],
        "settings": words.settings(outcome["hyperparameters"]),
        "state": outcome["state"] + (f": {outcome['error']}" if outcome["error"] else ""),
        "validation loss": words.loss(outcome["validation_loss"]),
        "metrics": words.metrics(outcome["metrics"]),
        "trained": f"{trained}, {words.duration(outcome['seconds'])}",
        "trainable": _amount(outcome["trainable_parameters"], "parameters"),
        "adapter": _amount(outcome["adapter_mb"], "MB"),
        "peak memory": _amount(outcome["peak_memory_mb"], "MB above the model's own"),
    }
    console.print(_pairs({name: text for name, text in rows.items() if text}))


def print_check(found: Mapping[str, Any], console: Console) -> None:
    rows = ", ".join(f"{count:,} {name}" for name, count in found["rows"].items())
    left_out = [f"{found[name]:,} {name}" for name in ("duplicates", "dropped") if found[name]]
    console.print(_pairs({
        "model": f"{found['model']}, {found['precision']}" + _memory(found["base_memory_mb"]),
        "data": f"{found['format']}\n{rows} rows" + (f"; left out: {', '.join(left_out)}" if left_out else ""),
        "a trial": f"sees the training rows {found['epochs_a_trial']:.2g} times"
                   + (f"\nfirst judged after {words.count(found['judged_after'], 'step')} (search.min_steps)"
                      if found["judged_after"] else ""),
        "the search": f"about {words.duration(found['search_seconds'])}, with the repeats and references at its end",
    }))
    if "tasks" in found:
        console.print()
        console.print(_mixture(found["tasks"]))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("method")
    for column in ("a trial takes", "memory beside the model", "trainable parameters", "adapter"):
        table.add_column(column, justify="right")
    for name, method in found["methods"].items():
        amounts = (_amount(method["peak_memory_mb"], "MB"), _amount(method["trainable_parameters"]),
                   _amount(method["adapter_mb"], "MB"))
        table.add_row(Text(name, "bold"), words.duration(method["trial_seconds"]), *amounts)
    console.print()
    console.print(table)
    for warning in found["warnings"]:
        console.print(Text(f"Warning: {warning}", "yellow"))


def _mixture(tasks: Mapping[str, Any]) -> Table:
    """Of data.tasks: how many rows of each, and its share of the training rows."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("task", "cluster"):
        table.add_column(column)
    for column in ("training rows", "validation", "test"):
        table.add_column(column, justify="right")
    total = sum(task["rows"]["train"] for task in tasks.values())
    for name, task in tasks.items():
        rows = task["rows"]
        share = f"{rows['train']:,} ({100 * rows['train'] / total:.0f} %)" if rows["train"] else "held out"
        table.add_row(Text(name, "bold"), task["cluster"], share, f"{rows['validation']:,}", f"{rows['test']:,}")
    return table


def print_methods(methods: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Each with its settings as --set and a config name them: the reference, and what is searched."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for method in methods:
        peft = f"loads with PEFT ({method['peft_type']})" if method["peft_type"] else "loads with transformers"
        peft += " after import finemesh" * method["plug_in"]
        others = {"merges into the model": method["mergeable"], "GGUF": method["gguf"]}
        traits = ", ".join([peft, *(trait for trait, there in others.items() if there)])
        about = Text(f"{method['summary']}\nfor {', '.join(method['tasks'])}; {traits}\n")
        settings = [f"{name}={words.setting(h['default'] if h['reference'] is None else h['reference'])} ({_range(h)})"
                    for name, h in method["hyperparameters"].items()]
        about.append("\n".join(settings) + "\n", "bright_black")
        table.add_row(method["name"], about)
    console.print(table)
    console.print(Text("Shown: the reference (and what is searched). To change it: --set, or `methods` in a config."))


def _range(hyperparameter: Mapping[str, Any]) -> str:
    if "choices" in hyperparameter:
        return ", ".join(words.setting(choice) for choice in hyperparameter["choices"])
    return f"{words.setting(hyperparameter['low'])} to {words.setting(hyperparameter['high'])}"


def _pairs(rows: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column()
    for name, text in rows.items():
        table.add_row(name, Text(text))
    return table


def _memory(megabytes: float | None) -> str:
    return "" if megabytes is None else f", {megabytes:,.0f} MB of memory"


def _amount(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:,.0f} {unit}".strip() if value >= 10 else f"{value:.2g} {unit}".strip()
