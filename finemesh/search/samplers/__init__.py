"""The optimizers by name. A new one is a file beside this one and a line in the table.

A factory takes the seed and the number of trials in flight (trial n is asked for when the trials up to n - in_flight are
told) and returns a sampler whose points are a function of these and of the told trials alone, so that a study continues in
a new process as if it had never stopped. Importing this module imports no sampler: NOMAD's child process needs that.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from finemesh.search.samplers.nomad import NomadSampler

__all__ = ["OPTIMIZERS", "NomadSampler"]


def _nomad(seed: int, in_flight: int) -> "BaseSampler":
    from finemesh.search.samplers.nomad import NomadSampler

    return NomadSampler(seed=seed, workers=in_flight)


def _tpe(seed: int, in_flight: int) -> "BaseSampler":
    from optuna.samplers import TPESampler

    from finemesh.search.samplers.reseeded import ReseededSampler

    return ReseededSampler(lambda seed: TPESampler(seed=seed), seed=seed, workers=in_flight)


def _random(seed: int, in_flight: int) -> "BaseSampler":
    from optuna.samplers import RandomSampler

    from finemesh.search.samplers.reseeded import ReseededSampler

    return ReseededSampler(lambda seed: RandomSampler(seed=seed), seed=seed, workers=in_flight)


OPTIMIZERS: dict[str, Callable[[int, int], "BaseSampler"]] = {"nomad": _nomad, "tpe": _tpe, "random": _random}


def __getattr__(name: str) -> Any:
    if name == "NomadSampler":
        from finemesh.search.samplers.nomad import NomadSampler

        return NomadSampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
