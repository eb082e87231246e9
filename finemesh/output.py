"""Where a command's result goes, and how its end is told: standard output carries the result alone."""

import codecs
import contextlib
import errno
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

import typer

from finemesh.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Output:
    """Where the result goes, and whether as JSON or as people read it."""

    stream: TextIO
    as_json: bool

    def show(self, document: Any, printed: "Callable[[Any, Console], None] | None" = None) -> None:
        if self.as_json or printed is None:
            escaped = codecs.lookup(self.stream.encoding or "utf-8").name != "utf-8"
            print(json.dumps(document, ensure_ascii=escaped, indent=1, allow_nan=False), file=self.stream)
        else:
            from rich.console import Console

            printed(document, Console(file=self.stream, highlight=False))


@contextlib.contextmanager
def opened_output(as_json: bool) -> Iterator[Output]:
    """Whatever else is printed while a command runs goes to standard error.

    What the result's encoding lacks is written as an escape (a German terminal of before UTF-8, an English answer's quotes).
    """
    output = Output(sys.stdout, as_json)
    if isinstance(output.stream, io.TextIOWrapper):
        output.stream.reconfigure(errors="backslashreplace")
    with contextlib.redirect_stdout(sys.stderr):
        yield output


def explained(error: Exception) -> tuple[str, int]:
    """The message and the exit status."""
    match error:
        case InputError():
            return str(error), 2
        case typer.TyperException():
            context = getattr(error, "ctx", None)
            how = f" ({context.command_path} --help shows what it takes)" if context else ""
            message = error.format_message()
            return message and message + how, error.exit_code
        case OSError() if error.errno in CANNOT_WRITE:
            place = f"{error.filename}: " if error.filename else ""
            return f"{place}{error.strerror}; make room there or choose another place (--out)", 2
    return f"unexpected {type(error).__name__}: {error} (run it again with --debug to see where)", 1
