"""report.html: one file that loads nothing, readable on a phone and in the dark. Python counts, the template draws."""

import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import finemesh
from finemesh.disk import write_text
from finemesh.results import words
from finemesh.results.finding import finding, headline
from finemesh.results.record import Record, read_record
from finemesh.results.report import front
from finemesh.results.report.charts import looks
from finemesh.results.report.history import history, learning_curves
from finemesh.results.report.importance import FEWEST, Importance, importances, share_of_method, spaces
from finemesh.results.report.methods import strips
from finemesh.results.report.parallel import parallels
from finemesh.results.report.table import COLUMNS, about, band, facts, leaders, results, table
from finemesh.results.summary import meaning

HERE = Path(__file__).parent
SECTIONS = (("results", "Results"), ("front", "Front"), ("answers", "Before and after"), ("history", "Search"),
            ("curves", "Curves"), ("importance", "What mattered"), ("methods", "Methods"), ("settings", "Settings"),
            ("trials", "Trials"), ("about", "Data and machine"))
KINDS = (("winner", "winner"), ("infeasible", "infeasible"), ("pruned", "pruned"), ("duplicate", "same settings again"),
         ("failed", "failed"))


def write_report(run: Path) -> Path:
    """Writes report.html into the folder of a run of any age; a former report is replaced whole."""
    record = read_record(run)
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("page.html").render(content(record))
    path = run / "report.html"
    write_text(path, page)
    return path


def content(record: Record) -> dict[str, Any]:
    """What the template shows, by name."""
    look = looks(record.methods)
    known = spaces(record)
    rows, ticks = results(record, look)
    trials, found = table(record), importances(record, known)
    shown = {"front": bool(record.front), "answers": record.task not in ("classify", "regress")}
    return {
        "record": record, "name": record.folder.resolve().name, "headline": headline(record),
        "finding": finding(record), "facts": facts(record), "looks": look,
        "sections": [one for one in SECTIONS if shown.get(one[0], True)], "shown": shown,
        "front": front.table(record), "front_charts": front.charts(record, look),
        "front_columns": ["trial", "method", "settings", *map(words.name, record.objectives)],
        "rows": rows, "ticks": ticks, "band": band(rows), "test_rows": test_rows(record), "meaning": meaning(record),
        "leaders": leaders(record, look), "leaders_said": words.leaders(record.noise),
        "unit": words.UNITS.get(record.task, ""), "answers": answers(record),
        "history": history(record, look), "curves": learning_curves(record, look),
        "kinds": [pair for pair in KINDS if any(trial.kind == pair[0] for trial in trials)],
        "share_of_method": share_of_method(record), "compared": compared(record),
        "importances": readable(found), "too_few": too_few(found), "strips": strips(record, look),
        "parallels": parallels(record, look, known), "columns": COLUMNS, "trials": trials,
        "about": about(record), "commands": commands(record), "config": config_text(record),
        "version": finemesh.__version__, "css": Markup((HERE / "page.css").read_text(encoding="utf-8")),
        "script": Markup((HERE / "page.js").read_text(encoding="utf-8")),
    }


def test_rows(record: Record) -> str:
    count = ((record.finish or {}).get("rows") or {}).get("test")
    return f"{words.count(count, 'row')} that no trial was trained or chosen on" if count else \
        "rows that no trial was trained or chosen on"


def answers(record: Record) -> list[dict[str, str]]:
    keys = ("prompt", "before", "after", "reference")
    return [{key: "" if answer.get(key) is None else str(answer[key]).strip() for key in keys}
            for answer in (record.finish or {}).get("answers") or []]


def readable(found: list[Importance]) -> list[Importance]:
    return [Importance(one.method, tuple((words.name(name), share) for name, share in one.shares), one.note)
            for one in found if one.shares]


def compared(record: Record) -> str:
    """After how many steps, where not after all of them."""
    if not record.early:
        return ""
    steps, known, trials = record.early[0].steps, len(record.early), len(record.trials)
    text = f"Trials were pruned on their way, so losses after {steps:,} of {record.settings['steps']:,} steps are compared, " \
           f"which {f'all {known}' if known == trials else f'{known} of {trials}'} trials have."
    most = max(outcome.scored_tokens for outcome in record.early)
    guessed = sum(o.state == "pruned" and o.steps == steps and o.scored_tokens < most for o in record.trials)
    said = words.count(guessed, "of these losses is an estimate", "of these losses are estimates")
    return text + (f" {said} from a part of the rows, which showed that the trial was no leader." if guessed else "")


def too_few(found: list[Importance]) -> str:
    few = ", ".join(f"{one.method} ({one.note})" for one in found if not one.shares)
    return f"Too few trials to tell, {FEWEST} are needed: {few}." if few else ""


def commands(record: Record) -> str:
    out = shlex.quote(record.config.get("out") or str(record.folder))
    lines = ["# save the config below as finemesh.yaml, then:", "finemesh search finemesh.yaml --out again"]
    winner = (record.winner or {}).get("number", record.best.number if record.best else None)
    if winner is not None:
        lines += ["", f"# trial {winner} alone, from this run's folder:", f"finemesh tune {out} --trial {winner}"]
    if (record.folder / "best").is_dir():
        lines += ["", "# use the winner:", f"finemesh predict {out} --data questions.jsonl"]
    return "\n".join(lines)


def config_text(record: Record) -> str:
    return (record.folder / "config.yaml").read_text(encoding="utf-8")
