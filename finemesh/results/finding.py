"""What a run found, in words; honest where the intervals do not tell two apart."""

from finemesh.results import words
from finemesh.results.record import Record, Row


def headline(record: Record) -> str:
    """A few words, for a heading."""
    rows = {row.kind: row for row in record.rows() if row.loss is not None}
    if "winner" not in rows:
        if record.best is None:
            return "No usable trial" if record.outcomes else "No trial yet"
        return f"{record.best.method} leads after {words.count(len(record.trials), 'trial')}"
    winner, untuned = rows["winner"], rows.get("untuned")
    if untuned is None:
        return f"{winner.method} wins with a test loss of {words.loss(winner.loss)}"
    sure = untuned.compared(winner)
    if sure == 0:
        return "No fine-tuning that is surely better than none"
    change = "brings" if sure > 0 else "raises"
    return f"{winner.method} {change} the test loss from {words.loss(untuned.loss)} to {words.loss(winner.loss)}"


def finding(record: Record) -> str:
    """What was found, in one to three sentences."""
    rows = record.rows()
    winner = next((row for row in rows if row.kind == "winner"), None)
    if winner is None:
        return without_winner(record)
    if winner.loss is None:
        why = winner.result.get("error") or "no reason is known"
        return f"{winner.method} with {winner.settings} is the best by the validation rows, but could not be measured on the " \
               f"test rows: {why}."
    untuned = next((row for row in rows if row.kind == "untuned" and row.loss is not None), None)
    references = sorted((row for row in rows if row.kind == "reference" and row.loss is not None),
                        key=lambda row: row.loss or 0.0)
    own = [row for row in references if row.method == winner.method
           and row.result.get("hyperparameters") == winner.result.get("hyperparameters")]
    best_reference = next((row for row in references if row.breaks is None and row not in own), None)
    behind = best_reference is not None and best_reference.compared(winner) < 0
    text = f"{winner.method} with {winner.settings} is the best {'of the trials' if behind else 'fine-tuning found'}: its " \
           f"loss on rows that the search never saw is {words.loss(winner.loss)} " \
           f"(95 % interval {words.interval(winner.result)})"
    text += f", against {words.loss(untuned.loss)} for the untuned model." if untuned else "."
    if untuned:
        text += {1: difference(untuned), 0: " Whether fine-tuning helps at all cannot be told from this test split.",
                 -1: " The untuned model does better."}[untuned.compared(winner)]
    text += f" These are the reference settings of {winner.method}." if own else ""
    if best_reference is not None:
        text += against(winner, best_reference, "best other" if own else "best")
    if behind and best_reference is not None and best_reference.method not in {o.method for o in record.trials}:
        text += f" No trial was of {best_reference.method}: give the search at least as many as there are methods " \
                f"({len((record.finish or {})['reference'])})."
    if references and references[0].breaks is not None and references[0].compared(winner) < 0:
        text += f" The reference settings of {references[0].method} would do better ({words.loss(references[0].loss)}), but " \
                f"break a constraint: {references[0].breaks}."
    return " ".join(filter(None, (text, words.leaders(record.noise), on_front(record))))


def on_front(record: Record) -> str:
    if not record.front:
        return ""
    *most, last = map(words.name, record.objectives)
    trials = words.count(len(record.front), "trial is", "trials are")
    return f"{trials} on the front of {', '.join(most)} and {last}: no other one is as good in all of them and better in one."


def difference(row: Row) -> str:
    above = row.above_winner
    return "" if above is None else f" Row by row that is lower by {words.loss(above['loss'])} ({words.interval(above)})."


def against(winner: Row, reference: Row, which: str) -> str:
    name = f"the {which} reference settings ({reference.method}, {words.loss(reference.loss)})"
    how = "compared row by row" if reference.above_winner is not None else "by their intervals"
    sure = reference.compared(winner)
    if sure == 0:
        return f" It cannot be told apart from {name}, {how}."
    return f" It also beats {name}, {how}." if sure > 0 else f" But {name} do better, {how}."


def without_winner(record: Record) -> str:
    go_on = " Start the same command again to go on." if record.state == "stopped" else ""
    if not record.outcomes:
        return "No trial has ended yet." + go_on
    if not record.trials:
        return f"None of {words.count(len(record.outcomes), 'point')} was started: each was foreseen to break a constraint. " \
               "Loosen search.constraints, and choose another --out."
    if record.best is None:
        return f"No trial of {len(record.trials)} could be used: see the table of trials for what went wrong."
    settings = words.settings(record.best.hyperparameters)
    text = f"Best so far, after {words.count(len(record.trials), 'trial')}: {record.best.method} with {settings}, " \
           f"validation loss {words.loss(record.best.validation_loss)}."
    return text + " The search has not finished: the leaders are not repeated and the test split is not used." + go_on
