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
    console.print(_pairs({words.name(name): _text(name, value) for name, value in found.items() if name != "warnings"}))
    for warning in found.get("warnings", ()):
        console.print(Text(f"Warning: {warning}", "yellow"))


def print_methods(methods: Sequence[Mapping[str, Any]], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in ("method", "tasks", "merges", "loads with", "GGUF", "settings (reference)"):
        table.add_column(column)
    for method in methods:
        settings = {name: h.get("reference", h.get("default")) for name, h in method["hyperparameters"].items()}
        known = {name: value for name, value in settings.items() if value is not None}
        table.add_row(Text(method["name"], "bold"), ", ".join(method["tasks"]), _yes(method["mergeable"]),
                      f"PEFT ({method['peft_type']})" if method["peft_type"] else "transformers", _yes(method["gguf"]),
                      Text(words.settings(known)))
    console.print(table)


def _pairs(rows: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column()
    for name, text in rows.items():
        table.add_row(name, Text(text))
    return table


def _text(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        fields = {words.name(inner): _text(inner, field) for inner, field in value.items() if field is not None}
        return "\n".join(f"{inner}: {text}" for inner, text in fields.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text("", item) for item in value)
    if name.endswith("seconds") and isinstance(value, int | float):
        return words.duration(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return words.setting(value)


def _amount(value: float | None, unit: str) -> str:
    return "" if value is None else f"{value:,.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
