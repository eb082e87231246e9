"""What a user did wrong, said so that it can be mended. The command line prints it and exits with status 2."""

import difflib
from collections.abc import Iterable
from pathlib import Path


class InputError(Exception):
    """The user's input is wrong: one message that names the file, line or field, the value, and the mend."""

    def __init__(self, message: str, *, file: Path | str | None = None, line: int | None = None) -> None:
        place = "" if file is None else f"{file}: " if line is None else f"{file}, line {line}: "
        super().__init__(place + message)


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean lora?' where a known name is near, and the known names."""
    names = sorted(known)
    match = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {match[0]}?" if match else ""
    return f"{hint} Known: {', '.join(names)}."
