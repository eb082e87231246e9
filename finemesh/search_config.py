"""The config's search section: budget, fidelity, constraints, objectives."""

import math
from dataclasses import fields
from typing import Any, Literal

from pydantic import Field, field_validator

from finemesh.data_config import Section
from finemesh.errors import nearest
from finemesh.objectives import LOSS, MOST, OBJECTIVES
from finemesh.trial import HIGHER_IS_BETTER, Outcome

BOUNDED = tuple(field.name for field in fields(Outcome) if "int" in str(field.type) or "float" in str(field.type)
                if field.name not in ("number", "seed", "metrics", "constraints", "duplicate_of", "continues", "whole_seconds"))
MINUTES = "minutes"  # of a trial, which outcome.json has as seconds


class SearchConfig(Section):
    optimizer: str = "nomad"
    trials: int = Field(default=30, ge=1)
    hours: float | None = Field(default=None, gt=0)
    steps: int = Field(default=200, ge=1)  # optimizer steps of a full trial
    fidelity: str = "full"  # full | halving | hyperband | curve: which trials go their full length
    min_steps: int | None = Field(default=None, ge=1)  # the fewest that a trial is judged by
    reduction: int = Field(default=3, ge=2)  # of so many trials one is promoted, but two to the end
    batch_size: int = Field(default=8, ge=1)  # rows an optimizer step
    accumulation: int = Field(default=1, ge=1)  # parts in which such a batch is computed, to need less memory
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"  # auto: the faster of fp32 and bf16, as measured
    earlier: list[str] = Field(default=[], alias="from")  # folders of runs whose best points are tried first
    constraints: dict[str, Any] = {}  # bounds on numbers of outcome.json: upper, or {at_least: x} for a score
    objectives: list[str] = [LOSS]  # several: the report shows the front
    repeats: int = Field(default=3, ge=1)  # seeds for the leaders
    extra_repeats: int = Field(default=1, ge=0)  # seeds more for two leaders that cannot be told apart
    seed: int = Field(default=0, ge=0, lt=2**31)
    reproducible: bool = True

    @field_validator("earlier", mode="before")
    @classmethod
    def _one_or_several(cls, folders: Any) -> Any:
        named = [folders] if isinstance(folders, str) else folders
        if isinstance(named, list) and len(set(map(str, named))) < len(named):
            raise ValueError("a run is named twice: keep one of them")
        return named

    @field_validator("constraints")
    @classmethod
    def _bounded(cls, bounds: dict[str, Any]) -> dict[str, Any]:
        for name, written in bounds.items():
            if name not in (*BOUNDED, MINUTES, *HIGHER_IS_BETTER):
                raise ValueError(f"{name} is no number of outcome.json.{nearest(name, (*BOUNDED, MINUTES, *HIGHER_IS_BETTER))}")
            floor = isinstance(written, dict) and list(written) == ["at_least"]
            if floor != (name in HIGHER_IS_BETTER):
                raise ValueError(f"{name} can be bounded from above only: give a number" if floor else
                                 f"{name} is a score, of which the least is bounded: {name}: {{at_least: 0.8}}")
            bound = written["at_least"] if floor else written
            if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
                raise ValueError(f"{name} must be bounded by a number, not {bound!r}")
            if bound < 0 and not floor:
                raise ValueError(f"{name} is never below 0, so the bound {bound:g} cannot be met: give one above 0")
            if floor and bound > 1:
                raise ValueError(f"{name} is never above 1, so the bound {bound:g} cannot be met: give one below, as 0.8")
        if MINUTES in bounds and "seconds" in bounds:
            raise ValueError("minutes and seconds are given: keep one of them")
        return bounds

    @property
    def bounds(self) -> dict[str, float]:
        """By the names of outcome.json: upper bounds, and lower ones of scores."""
        return {"seconds" if name == MINUTES else name: float(written["at_least"] if isinstance(written, dict) else
                                                              written * 60 if name == MINUTES else written)
                for name, written in self.constraints.items()}

    @field_validator("objectives")
    @classmethod
    def _known_objectives(cls, objectives: list[str]) -> list[str]:
        for name in objectives:
            if name not in OBJECTIVES:
                raise ValueError(f"{name} is nothing that can be searched for.{nearest(name, OBJECTIVES)}")
            if objectives.count(name) > 1:
                raise ValueError(f"{name} is named twice: keep one of them")
        if MINUTES in objectives and "seconds" in objectives:
            raise ValueError("minutes and seconds are one objective: keep one of them")
        if LOSS not in objectives:
            raise ValueError(f"{LOSS} is not among them, and the winner is chosen by it: add it")
        if len(objectives) > MOST:
            raise ValueError(f"{len(objectives)} objectives are more than the {MOST} that are searched at most: turn some of "
                             "them into search.constraints")
        return objectives
