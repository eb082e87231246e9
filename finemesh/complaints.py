"""What is wrong with a config, said with the place where it stands: a line of the file, or an option."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from finemesh.errors import InputError, nearest
from finemesh.tuning.data.instructions import EXAMPLE
from finemesh.yaml_lines import Document
from finemesh.yaml_lines import Field as FieldPath

_MISSING: dict[FieldPath, str] = {
    ("model",): "add `model:` with a hub name, a folder, a .gguf file or package:NAME",
    ("data", "train"): "add `train:` below `data:`, with a file or a hub data set, or `tasks:` for several",
    ("train",): "add `train:` with a file or a hub data set",
    ("templates",): f"add `templates:` with a list of at least one such as {EXAMPLE}",
}
_WANTED = {
    "int": "must be a whole number", "float": "must be a number", "finite": "must be a finite number",
    "string": "must be text", "bool": "must be true or false", "list": "must be a list such as [a, b]",
    "dict": "must be fields of its own, indented below it", "model": "must be fields of its own, indented below it",
}


@dataclass(frozen=True)
class Source:
    """Where a config's values come from: the file, and the options that win over it (dotted name of the field to --name).

    Nothing of it is compared: two configs are equal when they say the same, wherever that stands.
    """

    path: Path = field(compare=False)
    document: Document = field(compare=False)
    options: Mapping[str, str] = field(compare=False)

    def error(self, field: FieldPath, message: str) -> InputError:
        dotted = ".".join(map(str, field))
        around = [".".join(map(str, field[:size])) for size in range(len(field), 0, -1)]
        option = next((self.options[name] for name in around if name in self.options), None)
        if option:
            return InputError(f"{option}: {message}")
        return InputError(f"{dotted}: {message}", file=self.path, line=self.document.line(field))


def invalid(error: ValidationError, model: type[BaseModel], source: Source) -> InputError:
    """Every complaint of pydantic, in the file's order, as one error."""
    messages = {str(_complaint(detail, model, source)): source.document.line(_field(detail)) or 0
                for detail in error.errors(include_url=False)}
    return InputError("\n".join(sorted(messages, key=messages.__getitem__)))


def _complaint(detail: ErrorDetails, model: type[BaseModel], source: Source) -> InputError:
    field = _field(detail)
    if detail["type"] == "missing":
        return source.error(field, f"missing; {_MISSING.get(field) or _MISSING.get(field[-1:], 'add it')}")
    if detail["type"] in ("extra_forbidden", "invalid_key"):
        return source.error(field, f"there is no such field.{_known(field, model)}")
    if detail["type"] == "value_error":
        return source.error(field, str(detail["ctx"]["error"]))
    value = repr(detail["input"])
    return source.error(field, _wanted(detail) + (f", not {value}" if len(value) < 80 else ""))


def _field(detail: ErrorDetails) -> FieldPath:
    """Without the names that pydantic gives to the members of a union and to keys."""
    return tuple(part for part in detail["loc"] if not (isinstance(part, str) and "[" in part))


def _wanted(detail: ErrorDetails) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "literal_error":
            return f"must be {context['expected'].replace(chr(39), '')}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:.10g}"
        case "greater_than":
            return f"must be more than {context['gt']:.10g}"
        case "less_than":
            return f"must be less than {context['lt']:.10g}"
        case kind:
            return _WANTED.get(kind.split("_")[0], detail["msg"])


def _known(field: FieldPath, model: type[BaseModel]) -> str:
    """The nearest field of the same section; of another section where it belongs there."""
    section: Any = model
    for part in field[:-1]:  # a name of the user's, as of a task, leads to no other section
        section = (part in section.model_fields and _section(section.model_fields[part].annotation)) or section
    unknown = str(field[-1])
    places = [place for place, name in _fields(model) if name == unknown]
    return f" It belongs {places[0]}." if places else nearest(unknown, map(_as_written, section.model_fields.items()))


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, or holds several of by names of the user's."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)


def _as_written(field: tuple[str, FieldInfo]) -> str:
    return field[1].alias or field[0]


def _fields(model: type[BaseModel], place: str = "") -> Iterable[tuple[str, str]]:
    for name, info in model.model_fields.items():
        yield f"below {place}" if place else "at the left margin, below no other field", _as_written((name, info))
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from _fields(info.annotation, name)
