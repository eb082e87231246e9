"""The fidelity rules by name. A new one is a file beside this one and a line in the table.

A factory takes the steps of a full trial, the fewest steps that a trial is judged by (None: the rule's own) and the
reduction, by which of so many trials one is promoted.
"""

from collections.abc import Callable

from finemesh.search.fidelities.base import Fidelity, Start
from finemesh.search.fidelities.curve import curve
from finemesh.search.fidelities.full import Full
from finemesh.search.fidelities.halving import halving
from finemesh.search.fidelities.history import History
from finemesh.search.fidelities.hyperband import hyperband

__all__ = ["FIDELITIES", "Fidelity", "History", "Start"]

FIDELITIES: dict[str, Callable[[int, int | None, int], Fidelity]] = {
    "full": lambda steps, min_steps, reduction: Full(steps), "halving": halving, "hyperband": hyperband, "curve": curve}
