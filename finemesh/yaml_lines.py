"""YAML as a config needs it: 1e-5, 2e6 and 1E3 are numbers, and every field knows its line.

PyYAML follows YAML 1.1, where 1e-5 is text, 1:30 is ninety, 010 is eight and `no` is false; the rules below are YAML
1.2's. PyYAML also keeps the last of two equal keys in silence; here that is an error.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finemesh.errors import InputError

MOST_DIGITS = 300  # of an integer: a float holds it
Field = tuple[str | int, ...]  # ("search", "trials"); () is the whole document

_RULES = {
    "tag:yaml.org,2002:null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    "tag:yaml.org,2002:int": (r"^[-+]?[0-9][0-9_]*$", list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)$",
        list("-+.0123456789"),
    ),
}


class Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[Any, Any] = {}


class Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[Any, Any] = {}


for _tag, (_pattern, _first) in _RULES.items():
    Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)
    Dumper.add_implicit_resolver(_tag, re.compile(_pattern), _first)


def _integer(loader: Any, node: yaml.ScalarNode) -> int:
    digits = node.value.replace("_", "")
    if len(digits) > MOST_DIGITS:
        raise yaml.constructor.ConstructorError(None, None, f"an integer of more than {MOST_DIGITS} digits: write less, or "
                                                "put it in quotes where it is text", node.start_mark)
    return int(digits)


Loader.add_constructor("tag:yaml.org,2002:int", _integer)


@dataclass(frozen=True)
class Document:
    """The values of a YAML file, and the line (from 1) where each field stands."""

    values: Any
    lines: dict[tuple[str, ...], int]

    def line(self, field: Field) -> int | None:
        """The line of the field, or of the nearest one around it; None where the file does not speak of it."""
        names = tuple(map(str, field))
        while names and names not in self.lines:
            names = names[:-1]
        return self.lines[names] if names else None


def read_yaml(path: Path) -> Document:
    """Whatever the file holds; InputError where it cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError("this is not UTF-8 text; save the file as UTF-8", file=path, line=line) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=path) from None
    try:
        loader = Loader(text)
    except yaml.reader.ReaderError as error:
        before = text[:error.position].split("\n")
        raise InputError(f"not YAML: character {len(before[-1]) + 1} is {text[error.position]!a}, which is not printable; "
                         "remove it", file=path, line=len(before)) from None
    try:
        node = loader.get_single_node()
        if node is None:
            return Document(None, {})
        lines = dict(_lines(node, (), path))
        return Document(loader.construct_document(node), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise InputError(_explanation(error, text), file=path, line=mark.line + 1 if mark else None) from None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"not YAML: {' '.join(str(error).split())}", file=path) from None
    except RecursionError:
        raise InputError("an anchor (&name) holds itself: write the value out", file=path) from None
    finally:
        loader.dispose()


def write_yaml(values: Any, *, flow: bool = False) -> str:
    """`flow`: in one line, with braces."""
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=math.inf, default_flow_style=flow)


def _lines(node: yaml.Node, field: tuple[str, ...], path: Path) -> list[tuple[tuple[str, ...], int]]:
    found = [(field, node.start_mark.line + 1)] if field else []
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = str(key.value)
            if name in seen:
                raise InputError(f"{name} is given a second time; the first is on line {seen[name]}: keep one of them",
                                 file=path, line=line)
            seen[name] = line
            found += [*_lines(value, (*field, name), path), ((*field, name), line)]
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            found += _lines(value, (*field, str(index)), path)
    return found


def _explanation(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark or error.context_mark
    line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
    mend = ": indent with spaces, not with tabs" if "\t" in line[: len(line) - len(line.lstrip())] else ""
    reason = error.problem or error.context or "malformed"
    return f"not YAML: {reason}{mend}" + (f" (the line is {line.strip()[:60]!r})" if line.strip() else "")


def scalar(text: str) -> Any:
    """One value as the config would read it: 8 is a number, true a boolean, all-linear text; None where it is empty."""
    loader = Loader("")
    node = yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text)
    try:
        return loader.construct_object(node)
    except yaml.YAMLError:
        return text
