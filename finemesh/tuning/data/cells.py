"""The cells of a row, read as text, lists or numbers: what is of the wrong type is said with its line and field."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finemesh.tuning.data.rows import Row, parsed


@dataclass(frozen=True)
class Cells:
    """The fields of one row under a format's names; reading one of the wrong type is the user's error."""

    row: Row
    columns: Mapping[str, str]

    def value(self, field: str) -> Any:
        column = self.columns[field]
        if column not in self.row.fields:
            raise self.row.error(f"the row has no field {column!r}, which is its {field}; it has "
                                 f"{', '.join(self.row.fields) or 'none'}. Fill it in or remove the row; "
                                 "`columns` below the file's name in the config maps columns of other names")
        return self.row.fields[column]

    def text(self, field: str, default: str | None = None) -> str:
        """Text; `default` where the column is absent or null, if one is given."""
        if default is not None and (field not in self.columns or self.row.fields.get(self.columns[field]) is None):
            return default
        return self.checked(self.value(field), self.columns[field])

    def written(self, field: str) -> str:
        """Text; numbers and truths as text."""
        return self.checked(written(self.value(field)), self.columns[field])

    def checked(self, value: Any, name: str) -> str:
        if not isinstance(value, str):
            missing = value is None or (isinstance(value, float) and not math.isfinite(value))
            raise self.row.error(f"field {name!r} must be text, but it is {kind(value)}; "
                                 f"{'fill it in or remove the row' if missing else 'write it as text'}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self.row.error(f"field {name!r} holds half of a surrogate pair at character {error.start + 1}, "
                                 "which is no text; remove it") from None
        return value

    def listed(self, field: str) -> list[dict[str, Any]]:
        """A list of objects, or its JSON in a table's cell."""
        value = self.value(field)
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = parsed(value)
            except json.JSONDecodeError as error:
                raise self.row.error(f"field {self.columns[field]!r} holds malformed JSON: {error}") from None
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.row.error(f"field {self.columns[field]!r} must be a list of objects, but it is {kind(value)}")
        return value


def written(value: Any) -> Any:
    """Numbers and truths as text (1.0 as 1, True as true); all else, numbers that no float holds too, as it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if as_number(value) is not None and not isinstance(value, str):
        return str(int(value)) if value == int(value) else str(value)
    return value


def as_number(value: Any) -> float | None:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def kind(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object", str: "text"}
    return "null" if value is None else f"{names.get(type(value), type(value).__name__)}: {shown(value)}"


def shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
