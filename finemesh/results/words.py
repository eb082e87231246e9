"""Numbers and settings as people read them: the same in the live display, the summary, the report and the card."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from finemesh.trial import HIGHER_IS_BETTER

UNITS = {"instruct": "nats a token", "classify": "nats a row", "regress": "squared error"}
LOSS_WORDS = {
    "instruct": "The loss is the mean of -ln(probability) over the tokens of the answers: lower is better.",
    "classify": "The loss is the mean of -ln(probability of the right label) over the rows: lower is better.",
    "regress": "The loss is the mean squared error over the rows: lower is better.",
}
PERCENT = ("accuracy",)


def loss(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.2e}"


def interval(result: Mapping[str, Any]) -> str:
    low, high = result.get("low"), result.get("high")
    return "" if low is None or high is None else f"{loss(low)} to {loss(high)}"


def setting(value: Any) -> str:
    """1e-4, 0.05, 16, all_linear, "Answer briefly.": three significant digits, text of several words in quotes."""
    if isinstance(value, str) and " " in value:
        return f'"{value}"'
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    if value == 0:
        return "0"
    if 1e-3 < abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def name(key: str) -> str:
    return key.replace("_", " ")


def settings(hyperparameters: Mapping[str, Any], most: int | None = None) -> str:
    """'learning rate 3.1e-4, rank 16'; `most` keeps the first ones."""
    pairs = [f"{name(key)} {setting(value)}" for key, value in hyperparameters.items()]
    return ", ".join(pairs[:most])


def foresight(counts: Mapping[str, int]) -> str:
    """'4 points not started; of 3 that ran all the same 3 were infeasible, of 20 foreseen to be feasible 19 were'."""
    said = [f"{count(counts['not_started'], 'point')} not started"] if counts["not_started"] else []
    if counts["foreseen_infeasible"]:
        said.append(f"of {counts['foreseen_infeasible']} foreseen to be infeasible that ran all the same "
                    f"{counts['foreseen_infeasible_right']} were")
    if counts["foreseen_feasible"]:
        said.append(f"of {counts['foreseen_feasible']} foreseen to be feasible {counts['foreseen_feasible_right']} were")
    return "; ".join(said)


def leaders(noise: Mapping[str, Any] | None) -> str:
    """'Trials 7 and 3 cannot be told apart: ...', or how probably the winner is the best; '' where nothing was compared."""
    if noise is None or len(noise["leaders"]) < 2:
        return ""
    first, *others = noise["leaders"]
    deviation = noise["seed_deviation"]
    said = "" if deviation is None else f" From seed to seed a loss varies by {loss(deviation)} (standard deviation)."
    rivals = [one for one in others if one["number"] in noise["undecided"]]
    if not rivals:
        return f"Trial {first['number']} is the best of the {len(noise['leaders'])} leaders with a probability of " \
               f"{probability(first['best'])}.{said}"
    numbers = listed([str(one["number"]) for one in [first, *rivals]])
    each = listed([f"{probability(one['winner_better'])} against {one['number']}" for one in rivals])
    return f"Trials {numbers} cannot be told apart: {first['number']} is better with a probability of {each}.{said}"


def listed(parts: Sequence[str]) -> str:
    """'a, b and c'."""
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def probability(value: float) -> str:
    return "over 99 %" if value > 0.995 else f"{100 * value:.0f} %"


def metric(key: str, value: float) -> str:
    return f"{100 * value:.1f} %" if key in PERCENT else f"{value:.3f}"


def objective(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    if key == "validation_loss":
        return loss(value)
    if key in HIGHER_IS_BETTER:
        return metric(key, value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def metrics(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name(key)} {metric(key, value)}" for key, value in (values or {}).items() if value is not None)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """'1 trial', '3 trials'."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {plural or noun + 's'}"


def spark(values: list[float], width: int) -> str:
    """The values as a line of blocks at most `width` wide; neighbours are averaged where there are more."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite or width < 1:
        return ""
    size = min(width, len(finite))
    edges = [round(i * len(finite) / size) for i in range(size + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int((mean - low) / span * 8))] for mean in means)
