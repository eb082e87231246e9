"""One record of a source, and where it stands there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finemesh.errors import InputError


@dataclass(frozen=True)
class Row:
    """One record. `line` counts lines from 1 in text files, and rows from 1 (`unit`) where a file has no lines."""

    fields: Mapping[str, Any]
    file: str
    line: int
    unit: str = "line"

    @property
    def place(self) -> str:
        return f"{self.file}, {self.unit} {self.line}"

    @property
    def blank(self) -> bool:
        """All its fields are empty, as of the rows that spreadsheets leave below a table."""
        return not any(value != "" for value in self.fields.values())

    def error(self, message: str) -> InputError:
        return InputError(f"{self.place}: {message}")
