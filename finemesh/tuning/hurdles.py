"""When a trial stops on its way because it is surely no leader."""

from collections.abc import Mapping
from typing import Any

from finemesh.trial import Hurdle, Job
from finemesh.tuning.evaluation.evaluation import Evaluation
from finemesh.tuning.training import CurveLine


class Hopeless(Exception):
    """The trial is surely no leader; `numbers` are the outcome's so far."""

    def __init__(self, message: str, numbers: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.numbers = numbers


def hurdle_after(job: Job, step: int) -> Hurdle | None:
    return next((hurdle for hurdle in job.hurdles or () if hurdle.step == step), None)


def hopeless(line: CurveLine, evaluation: Evaluation, job: Job) -> str | None:
    """Why the trial is no leader for sure: its rows say so, or it would go on from too high a loss."""
    hurdle = hurdle_after(job, line.step)
    if hurdle is None:
        return None
    if evaluation.beaten:
        seen = sum(weight > 0 for weight in evaluation.row_weights)
        return (f"surely behind trial {hurdle.rival} after {line.step} steps, as {seen} of {len(evaluation.row_weights)} "
                "validation rows say")
    if evaluation.loss > hurdle.loss and line.step < job.steps:
        return f"a loss of {evaluation.loss:.4g} after {line.step} steps is above {hurdle.loss:.4g}: too far behind the leaders"
    return None
