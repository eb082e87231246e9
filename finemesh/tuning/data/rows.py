"""One record of a source, and where it stands there."""

import json
import re
import sys
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


def parsed(text: str) -> Any:
    """JSON; JSONDecodeError also for what Python's reader gives up on in other ways."""
    try:
        return json.loads(text)
    except RecursionError:
        raise json.JSONDecodeError("brackets within brackets, too many to read", text, 0) from None
    except json.JSONDecodeError:
        raise
    except ValueError:
        most = sys.get_int_max_str_digits()
        number = re.search(rf"\d{{{most + 1}}}", text)
        raise json.JSONDecodeError(f"an integer of more than {most} digits, too many to read: write it as text", text,
                                   number.start() if number else 0) from None
