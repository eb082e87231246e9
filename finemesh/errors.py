"""What a user did wrong, said so that it can be mended. The command line prints it and exits with status 2."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(Exception):
    """The user's input is wrong: one message that names the file, line or field, the value, and the mend."""

    def __init__(self, message: str, *, file: Path | str | None = None, line: int | None = None) -> None:
        place = "" if file is None else f"{file}: " if line is None else f"{file}, line {line}: "
        super().__init__(place + message)


class NoSuchFile(InputError):
    """A file or a data set that is named is not there."""


class FieldError(InputError):
    """A field of the config is wrong in a way that shows only when it is used; Config.placed adds the file and the line."""

    def __init__(self, message: str, *field: str | int) -> None:
        super().__init__(f"{'.'.join(map(str, field))}: {message}")
        self.message, self.field = message, field


@contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Names a run's file that cannot be read: a kill or a full disk leaves none such, a copy that was cut off may."""
    try:
        yield
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"it is damaged ({error}): put a copy of it back, or search again with another --out",
                         file=path) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean lora?' where a known name is near, and the known names."""
    names = sorted(known)
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {match[0]}?" if match else ""
    return f"{hint} Known: {', '.join(names)}."


def first_line(error: BaseException) -> str:
    """Of what a library says."""
    return str(error).strip().split("\n")[0] or type(error).__name__
