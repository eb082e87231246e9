"""What is worth a word before a search begins, and no error."""

from finemesh.config import Config
from finemesh.preparation import Study
from finemesh.tuning.blackbox import FORWARD_SHARE
from finemesh.tuning.data.split import Splits

ENOUGH_ROWS = 200  # to validate on, where a trial trains on few


def remarks(config: Config, study: Study) -> list[str]:
    """Of the data, the budget and the validation split."""
    trials, methods = config.search.trials, len(study.references)
    few = [f"search.trials: {trials} trials do not try each of the {methods} methods: the others are only measured with their "
           "reference settings, at the end"] if trials < methods else []
    return [*study.splits.notes, *few, *_mostly_validated(config, study.splits)]


def _mostly_validated(config: Config, splits: Splits) -> list[str]:
    """Where more than half of a trial's work, at the least, is to look at the validation rows twice."""
    rows, trained, share = len(splits.validation), config.search.steps * config.search.batch_size, config.data.validation
    looked, enough = 2 * FORWARD_SHARE * rows, max(ENOUGH_ROWS, trained // 4)
    if looked <= trained or rows <= enough:
        return []
    fewer = f"some {enough:,} would do"
    if isinstance(share, float) and not config.data.held_out:
        fewer += f" (data.validation: {share * enough / rows:.1g})"
    return [f"validation has {rows:,} rows, and a trial trains on {trained:,}: about {100 * looked / (looked + trained):.0f} % "
            f"of its time goes into validation; {fewer}"]
