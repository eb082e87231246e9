"""The commands: parse, call finemesh.api, print. What they do is there; how a search is shown, in results/.

Standard output carries the result alone (with --json one document), standard error all else. Exit status: 0 done, 2 the
input is wrong, 130 interrupted, 1 anything else, as a run that failed. finemesh.api brings torch, so the commands import it.
"""

import contextlib
import math
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finemesh.errors import InputError
from finemesh.output import Output, explained, opened_output
from finemesh.yaml_lines import scalar

if TYPE_CHECKING:
    from finemesh.config import Config
    from finemesh.search.observer import Observer
    from finemesh.trial import Outcome

app = typer.Typer(name="finemesh", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
                  help="Finds the best way to fine-tune a language model on your data, within your budget.",
                  epilog="Start with: finemesh init DATA, then finemesh search finemesh.yaml")
GO_ON = ("search", "demo", "tune")
INTERRUPTED = 130  # what typer makes of Ctrl-C


def _argument(metavar: str, text: str) -> Any:
    return typer.Argument(metavar=metavar, show_default=False, help=text)


def _option(name: str, metavar: str, text: str) -> Any:
    return typer.Option(name, metavar=metavar, show_default=False, help=text)


def _number(name: str, metavar: str, text: str) -> Any:
    """Read as the config reads it (1e2 is a number) and checked there, so that one thing is said in one way."""
    return typer.Option(name, metavar=metavar, show_default=False, help=text, parser=scalar)


ConfigFile = Annotated[Path, _argument("CONFIG", "a finemesh.yaml")]
Run = Annotated[Path, _argument("RUN", "the folder that a search wrote")]
Out = Annotated[str | None, _option("--out", "DIR", "where to write")]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on standard output")]
Debug = Annotated[bool, typer.Option("--debug", help="the traceback of an error")]


@app.command()
def init(
    data: Annotated[str, _argument("DATA", ".jsonl .json .csv .tsv .parquet file, hub data set or package:NAME")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="the config to write")] = Path("finemesh.yaml"),
    column: Annotated[list[str] | None, _option("--column", "FIELD=NAME", "of unusual columns: text=review")] = None,
    force: Annotated[bool, typer.Option("--force", help="write over an existing file")] = False,
    as_json: Json = False, debug: Debug = False,
) -> None:
    """Write a commented config, guessed from the data."""
    with opened_output(as_json) as output:
        from finemesh.init import print_guess, write_config

        columns = assigned("--column", column or [], "text=review", read=str)
        output.show(write_config(data, out, columns=columns, force=force), print_guess)


@app.command()
def search(
    config: ConfigFile,
    trials: Annotated[Any, _number("--trials", "N", "stop the search after N trials")] = None,
    hours: Annotated[Any, _number("--hours", "H", "stop the search after H hours; leaders and references come after")] = None,
    optimizer: Annotated[str | None, _option("--optimizer", "NAME", "nomad, tpe or random")] = None,
    fidelity: Annotated[str | None, _option("--fidelity", "NAME", "full, halving, hyperband or curve")] = None,
    earlier: Annotated[list[str] | None, _option("--from", "RUN", "try the best points of this run first (repeatable)")] = None,
    workers: Annotated[Any, _number("--workers", "N", "trials at a time")] = None,
    here: Annotated[Any, _number("--here", "N", "of these, here; the others in the same command elsewhere")] = None,
    out: Out = None, as_json: Json = False, debug: Debug = False,
) -> None:
    """Search the best method and settings. Started again with the same --out it goes on where it stopped."""
    with opened_output(as_json) as output:
        from finemesh.config import load_config

        options = {"search.trials": trials, "search.hours": hours, "search.optimizer": optimizer, "search.fidelity": fidelity,
                   "search.from": earlier or None, "workers": workers, "out": out}
        if here is not None and (type(here) is not int or here < 1):
            raise InputError(f"--here: must be a whole number of at least 1, not {here!r}")
        _search(load_config(config, options), output, here)


@app.command()
def demo(as_json: Json = False, debug: Debug = False) -> None:
    """Search on a small real model and real data, to see what comes out."""
    with opened_output(as_json) as output:
        from finemesh.demo import demo_config, sized

        _search(sized(demo_config(), lambda text: print(text, file=sys.stderr, flush=True)), output)


@app.command()
def tune(
    source: Annotated[Path, _argument("CONFIG|RUN", "a config, or the folder that a search wrote")],
    method: Annotated[str | None, _option("--method", "NAME", "with a CONFIG: lora, full, ...")] = None,
    settings: Annotated[list[str] | None, _option("--set", "NAME=VALUE", "else as in the method's reference")] = None,
    steps: Annotated[Any, _number("--steps", "N", "optimizer steps")] = None,
    trial: Annotated[Any, _number("--trial", "N", "with a RUN: the trial to do again")] = None,
    out: Out = None, as_json: Json = False, debug: Debug = False,
) -> None:
    """Fine-tune once: a method with given settings, or a trial of a run again."""
    with opened_output(as_json) as output:
        if trial is None:
            outcome = _tune(source, method, settings or [], steps, out)
        else:
            given = {"--method": method, "--set": settings, "--steps": steps, "--out": out}
            if extra := [name for name, value in given.items() if value is not None]:
                raise InputError(f"{extra[0]} does not go with --trial, which does a trial as it was: leave one out")
            outcome = _tune_again(source, trial)
        from finemesh.tables import print_outcome

        output.show(outcome.to_json(), print_outcome)
        if outcome.state == "failed":
            raise typer.Exit(1)


@app.command()
def predict(
    run: Run, data: Annotated[str, _option("--data", "FILE", "the rows to answer or label")],
    task: Annotated[str | None, _option("--task", "NAME", "of data.tasks: its first template asks")] = None,
    as_json: Json = False, debug: Debug = False,
) -> None:
    """Answers or labels of the winner, a line a row (line breaks in an answer are written as \\n)."""
    with opened_output(as_json) as output:
        from finemesh import api

        answers = api.predict(run, data, task)
        if as_json:
            output.show(list(answers))
            return
        for answer in answers:
            print(answer.replace("\r\n", "\n").replace("\n", "\\n"), file=output.stream, flush=True)


@app.command()
def check(config: ConfigFile, as_json: Json = False, debug: Debug = False) -> None:
    """Data, split, memory and time, before anything is spent."""
    with opened_output(as_json) as output:
        from finemesh.config import load_config
        from finemesh.tables import print_check

        settings = load_config(config)
        from finemesh import api

        found = api.check(settings, lambda text: print(text, file=sys.stderr, flush=True))
        output.show(found, print_check)
        if not found["methods"]:  # none ran; the warnings say why
            raise typer.Exit(1)


@app.command()
def status(run: Run, as_json: Json = False, debug: Debug = False) -> None:
    """How far a search is, and the best so far."""
    with opened_output(as_json) as output:
        from finemesh.results import summary

        output.show(summary.status(run), lambda _, console: summary.print_status(run, console))


@app.command()
def report(
    run: Run, show: Annotated[bool, typer.Option("--open", help="open it in a browser")] = False,
    as_json: Json = False, debug: Debug = False,
) -> None:
    """Write report.html: one file with everything that was found."""
    with opened_output(as_json) as output:
        from finemesh import api

        path = api.report(run)
        output.show({"report": str(path)}, lambda _, console: console.print(str(path), soft_wrap=True, markup=False))
        if show:
            import webbrowser

            webbrowser.open(path.resolve().as_uri())


@app.command()
def probe(
    config: ConfigFile,
    run: Annotated[Path | None, _option("--run", "RUN", "also how flat it is around what this run tuned")] = None,
    batches: Annotated[Any, _number("--batches", "N", "gradients of N batches")] = None,
    directions: Annotated[Any, _number("--directions", "N", "losses along N random directions")] = None,
    out: Out = None, as_json: Json = False, debug: Debug = False,
) -> None:
    """How concentrated the gradient is, and the loss around the model, against the same one randomly initialised."""
    with opened_output(as_json) as output:
        given = {name: value for name, value in (("batches", batches), ("directions", directions)) if value is not None}
        for name, value in given.items():
            if type(value) is not int or value < 2:
                raise InputError(f"--{name}: must be a whole number of at least 2 (there is no interval of one), not {value!r}")
        from finemesh.config import load_config
        from finemesh.results.probe import print_probe

        settings = load_config(config, {"out": out})
        from finemesh import probing

        document = probing.probe(settings, run=run, out=out, counts=given,
                                 say=lambda text: print(f"Measuring {text} ...", flush=True))
        output.show(document, print_probe)


@app.command()
def methods(as_json: Json = False, debug: Debug = False) -> None:
    """The tuning methods, what each trains and what its settings are."""
    with opened_output(as_json) as output:
        from finemesh import api
        from finemesh.tables import print_methods

        output.show(api.methods(), print_methods)


def _search(config: "Config", output: Output, here: int | None = None) -> None:
    from finemesh import api
    from finemesh.results.summary import print_summary

    with _watched(config) as observer:
        document = api.search(config, observer=observer, here=here)
    output.show(document, lambda _, console: print_summary(Path(config.out), console))


def _tune(source: Path, method: str | None, settings: list[str], steps: Any, out: str | None) -> "Outcome":
    if source.is_dir():
        raise InputError(f"{source} is a folder: give --trial N to do a trial of that run again, or name a config")
    if steps is not None and (type(steps) is not int or steps < 1):
        raise InputError(f"--steps: must be a whole number of at least 1, not {steps!r}")
    point = assigned("--set", settings, "rank=8")
    from finemesh.config import load_config

    config = load_config(source, {"out": out})
    from finemesh import api

    if method is None:
        raise InputError(f"--method is missing: one of {', '.join(found['name'] for found in api.methods())}")
    with _watched(config, trials=1) as observer:
        return api.tune(config, method, point, steps, out, observer)


def _tune_again(run: Path, number: Any) -> "Outcome":
    if type(number) is not int or number < 0:
        raise InputError(f"--trial: must be the number of a trial, not {number!r}")
    from finemesh import api

    return api.tune_again(run, number)


def assigned(option: str, texts: Sequence[str], example: str, read: Callable[[str], Any] = scalar) -> dict[str, Any]:
    """["rank=8", "learning_rate=2e-4"] as a dict; `read` makes the values."""
    values: dict[str, Any] = {}
    for text in texts:
        name, right = (part.strip() for part in text.partition("=")[::2])
        value = read(right)
        if not (name and right) or value is None:
            raise InputError(f"{option} {text}: must be a name and a value, such as {option} {example}")
        if name in values:
            raise InputError(f"{option} {text}: {name} is given twice; keep one of them")
        values[name] = value
    return values


@contextlib.contextmanager
def _watched(config: "Config", trials: int | None = None) -> Iterator["Observer"]:
    """A live display of the search, or of one run, on standard error."""
    from finemesh.results.live import live
    from finemesh.run import RunFolder

    run, seconds = RunFolder(config.out), 3600 * (config.search.hours or math.inf)
    with live(None, trials=trials or config.search.trials, earlier=[] if trials else run.outcomes(),
              search_left=lambda: seconds - run.clock().get("search", 0.0)) as observer:
        yield observer


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries are not news; our message says what failed
    try:
        status = app(given, standalone_mode=False, prog_name="finemesh") or 0
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:
        if "--debug" in given:
            traceback.print_exc()
        message, status = explained(error)
        print(f"Error: {message}" if message else "", file=sys.stderr)
    if status == INTERRUPTED:
        again = f" What has ended is kept; go on with: finemesh {shlex.join(given)}"
        anew = any(text.partition("=")[0] == "--trial" for text in given)  # a trial is done again from its beginning
        print("Interrupted." + (again if given[0] in GO_ON and not anew else ""), file=sys.stderr)
    return int(status)
