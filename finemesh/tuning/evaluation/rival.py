"""Whether a leader is surely better, told from a part of the validation rows: both have a loss for each of them.

Wilcoxon's signed-rank test on the differences of the rows' summed losses (Wilcoxon 1945; as Optuna's WilcoxonPruner), after
an eighth, a quarter and half of the rows and after all of them. Rows differ much more than models do: pairs see through that.
"""

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finemesh.trial import write_json

ERROR = 0.01  # the chance, over all looks, to give up a trial that is as good as the rival
SHARES = (0.125, 0.25, 0.5, 1.0)  # of the rows
FEWEST = 16  # rows

Numbers = NDArray[np.floating] | NDArray[np.integer]


@dataclass(frozen=True)
class Rival:
    """A leader's losses on the validation rows after as many steps, and its loss over all of them.

    `allowance`: a loss that is higher by no more is not worse.
    """

    row_losses: list[float]
    loss: float
    allowance: float = 0.0

    def parts(self) -> list[list[int]]:
        """The rows in a random order, the same for every trial, cut where they are compared."""
        order = np.random.default_rng(0).permutation(len(self.row_losses)).tolist()
        cuts = [0, *(round(share * len(order)) for share in SHARES)]
        return [part for start, end in pairwise(cuts) if (part := order[start:end])]

    def better(self, sums: Numbers, weights: Numbers) -> float | None:
        """An estimate of the loss over all rows where the rival is surely better, else None. Rows not yet seen weigh 0."""
        from scipy.stats import wilcoxon

        seen = weights > 0
        if seen.sum() < FEWEST:
            return None
        above = sums[seen] - weights[seen] * np.array(self.row_losses)[seen]
        excess = above - weights[seen] * self.allowance
        if not math.isfinite(excess.sum()) or excess.sum() <= 0:
            return None
        if wilcoxon(excess, alternative="greater", zero_method="zsplit").pvalue >= ERROR / len(SHARES):
            return None
        return float(self.loss + above.sum() / weights[seen].sum())


def write_rows(folder: Path, step: int, loss: float, row_losses: list[float]) -> None:
    (folder / "rows").mkdir(exist_ok=True)
    write_json(folder / "rows" / f"{step}.json", {"loss": loss, "row_losses": [float(f"{x:.6g}") for x in row_losses]})


def read_rival(folder: Path, step: int, most: float) -> Rival | None:
    """The trial of this folder as it was after `step` updates, to be compared with where a loss of `most` is allowed."""
    file = folder / "rows" / f"{step}.json"
    if not file.exists():
        return None
    kept = json.loads(file.read_text(encoding="utf-8"))
    return Rival(kept["row_losses"], kept["loss"], most - kept["loss"])
