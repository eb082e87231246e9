"""Scores beside the loss, by scikit-learn and scipy: accuracy, F1 and Matthews correlation; Pearson and Spearman.

These libraries are imported where they are needed: a quarter of the time in which a worker is there, which the usual task
does not need (LOG.md).
"""

import warnings
from collections.abc import Sequence
from typing import Any


def classification_metrics(truth: Sequence[Any], predicted: Sequence[int], classes: int) -> dict[str, float]:
    """`f1` is of class 1 where the task has two classes (as GLUE has it), else the mean over all of them: one that does not
    occur counts 0, so that two models are measured by the same thing."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    average = {"average": "binary"} if classes == 2 else {"average": "macro", "labels": range(classes)}
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "f1": float(f1_score(truth, predicted, zero_division=0.0, **average)),
        "matthews": float(matthews_corrcoef(truth, predicted)) if len({*truth, *predicted}) > 1 else 0.0,
    }


def regression_metrics(truth: Sequence[Any], predicted: Sequence[float]) -> dict[str, float]:
    """0 where a correlation is not defined (all predictions equal, or fewer than two rows)."""
    if len(truth) < 2 or len(set(truth)) < 2 or len(set(predicted)) < 2:
        return {"pearson": 0.0, "spearman": 0.0}
    from scipy.stats import pearsonr, spearmanr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"pearson": float(pearsonr(truth, predicted).statistic),
                "spearman": float(spearmanr(truth, predicted).statistic)}


def task_losses(tasks: Sequence[str], losses: Sequence[float], weights: Sequence[int]) -> dict[str, float]:
    """`loss_TASK` of every task of a mixture, over its rows alone; a row without a task counts to none."""
    sums: dict[str, list[float]] = {}
    for task, loss, weight in zip(tasks, losses, weights, strict=True):
        total = sums.setdefault(task, [0.0, 0.0])
        total[0], total[1] = total[0] + loss * weight, total[1] + weight
    return {f"loss_{task}": total / weight for task, (total, weight) in sorted(sums.items()) if task}
