"""Rows of .jsonl, .json, .csv, .tsv and .parquet files, and the way to all other sources.

Everything that is wrong with a file is said here with its line; what the fields mean is formats.py's matter.
A new kind of file is an entry of READERS.
"""

import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finemesh.errors import InputError, NoSuchFile, nearest
from finemesh.tuning.data.corpora import read_hub, read_package
from finemesh.tuning.data.rows import Row, parsed

PACKED = (".gz", ".zip", ".bz2", ".xz", ".zst", ".tar", ".tgz")


def read_rows(source: str, columns: Mapping[str, str | int] | None = None) -> list[Row]:
    """The rows of a file, of `package:chatterbot-corpus`, or of a hub data set (NAME, NAME:SPLIT or NAME:CONFIG:SPLIT).

    Where `columns` gives positions, counted from 0, a .csv or .tsv file is read as one without a header line, and
    its fields are named "0", "1", ...
    """
    if source.startswith("package:"):
        rows = read_package(source)
    elif Path(source).expanduser().exists() or _names_a_file(source):
        rows = _read_file(Path(source).expanduser(), source, [str(column) for column in (columns or {}).values()])
    else:
        rows = read_hub(source)
    if not rows:
        raise InputError("there is no row in it; give at least a few rows", file=source)
    return rows


def _names_a_file(source: str) -> bool:
    return (source.startswith((".", "/", "~")) or Path(source).suffix.lower() in READERS
            or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(:[^/\\]+)?", source))


def _read_file(path: Path, source: str, wanted: list[str]) -> list[Row]:
    if path.is_dir():
        raise InputError("this is a directory; name one file in it", file=source)
    if path.exists() and path.suffix.lower() in PACKED:
        raise InputError(f"this is packed; unpack it and name the file in it, as {path.with_suffix('').name}", file=source)
    if path.exists() and path.suffix.lower() not in READERS:
        raise InputError(f"unknown kind of file {path.suffix or path.name!r}.{nearest(path.suffix, READERS)}",
                         file=source)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise NoSuchFile("there is no such file; check the name and the folder it is looked for in "
                         f"({Path.cwd()})", file=source) from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}; check its permissions", file=source) from None
    return READERS[path.suffix.lower()](content, source, wanted)


def _text(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")  # the byte order mark that some editors leave
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        guess = " (it looks like UTF-16)" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise InputError(f"byte {content[error.start]:#04x} at offset {error.start} is not UTF-8{guess}; "
                         "save the file as UTF-8", file=source, line=line) from None


def _row(fields: Any, source: str, line: int, unit: str) -> Row:
    if not isinstance(fields, dict):
        raise InputError(f"{source}, {unit} {line}: {json.dumps(fields, ensure_ascii=False)[:60]} is not an object; "
                         'a row looks like {"prompt": "...", "completion": "..."}')
    row = Row(fields, source, line, unit)
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        raise row.error(f"the name of a field ({', '.join(map(ascii, fields))}) holds half of a surrogate pair, which is no "
                        "text; remove it") from None
    return row


def _read_jsonl(content: bytes, source: str, wanted: list[str]) -> list[Row]:
    rows = []
    for number, line in enumerate(_text(content, source).split("\n"), start=1):  # splitlines() would cut at U+2028 too
        if not line.strip():
            continue
        try:
            fields = parsed(line)
        except json.JSONDecodeError as error:
            raise InputError(f"malformed JSON at character {error.pos + 1}: {error.msg}; "
                             "one JSON object a line is expected", file=source, line=number) from None
        if isinstance(fields, list):
            raise InputError("a list, where one JSON object a line is expected; "
                             "name the file .json if it is one list of rows", file=source, line=number)
        rows.append(_row(fields, source, number, "line"))
    return rows


def _read_json(content: bytes, source: str, wanted: list[str]) -> list[Row]:
    """A list of objects, an object that holds one such list, or columns; also what is .jsonl under another name."""
    text = _text(content, source)
    if not text.strip():
        return []
    try:
        document = parsed(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _read_jsonl(content, source, wanted)
        raise InputError(f"malformed JSON at character {error.colno}: {error.msg}; a list of rows is expected, "
                         "[{...}, {...}]", file=source, line=error.lineno) from None
    if isinstance(document, dict):
        lists = [value for value in document.values() if isinstance(value, list)]
        tables = {name: value for name, value in document.items() if isinstance(value, list) and value
                  and isinstance(value[0], dict)}
        if len(tables) > 1:
            raise InputError(f"it holds several tables ({', '.join(tables)}); write each to a file of its own, for data.train, "
                             "data.validation and data.test", file=source)
        if len(tables) == 1:
            (document,) = tables.values()
        elif len(lists) == len(document) and len({len(value) for value in lists}) == 1:
            document = [dict(zip(document, values, strict=True)) for values in zip(*lists, strict=True)]
    if not isinstance(document, list):
        raise InputError("a list of rows is expected, [{...}, {...}]; one object a line is a .jsonl file", file=source)
    return [_row(fields, source, number, "row") for number, fields in enumerate(document, start=1)]


def _read_csv(content: bytes, source: str, wanted: list[str]) -> list[Row]:
    """Separated by what divides all records into as many fields; where nothing does, by what the first line has."""
    text = _text(content, source)
    for delimiter in (",", ";"):
        with contextlib.suppress(csv.Error):
            records = _records(text, delimiter)
            counts = {len(fields) for _, fields in records}
            if len(counts) == 1 and max(counts) > 1:
                return _table(records, source, wanted)
    first = re.sub('"[^"]*"', "", text.split("\n", 1)[0])
    try:
        return _table(_records(text, ";" if ";" in first and "," not in first else ","), source, wanted)
    except csv.Error as error:
        raise InputError(f"malformed CSV: {error.args[0]}; put a field with quotes in it in quotes and double those "
                         "inside", file=source, line=error.args[1]) from None


def _read_tsv(content: bytes, source: str, wanted: list[str]) -> list[Row]:
    """Tables of the field (GLUE's) never quote, spreadsheets do: the quotes count where they all close properly.

    An unpaired quote would swallow what follows up to the next one: such a field holds both tabs and line ends.
    """
    text = _text(content, source)
    try:
        records = _records(text, "\t")
        quoted = (len({len(fields) for _, fields in records}) == 1
                  and not any("\t" in field and "\n" in field for _, fields in records for field in fields))
    except csv.Error:
        quoted = False
    return _table(records if quoted else _records(text, "\t", csv.QUOTE_NONE), source, wanted)


def _records(text: str, delimiter: str, quoting: Any = csv.QUOTE_MINIMAL) -> list[tuple[int, list[str]]]:
    """(line, fields) of every record; raises csv.Error(message, line)."""
    csv.field_size_limit(2**31 - 1)  # a long document is no error
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    records, line = [], 1
    try:
        for fields in reader:
            if fields:
                records.append((line, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(str(error), line) from None
    return records


def _table(records: list[tuple[int, list[str]]], source: str, wanted: list[str]) -> list[Row]:
    if not records:
        return []
    first = next((i for i, (_, fields) in enumerate(records) if any(fields)), 0)  # spreadsheets may leave blank ones above
    line, names = records[first]
    header = [name.strip() for name in names]
    if any(name.isdecimal() and name not in header for name in wanted):
        header = [str(position) for position in range(len(header))]
    else:
        records = records[first + 1:]
        twice = _twice(header)
        if twice is not None:
            raise InputError(f"the header names the column {twice!r} twice; {no_header(header)}", file=source, line=line)
    for line, fields in records:
        if len(fields) != len(header):
            raise InputError(f"{len(fields)} fields where the first line has {len(header)} ({', '.join(header)})",
                             file=source, line=line)
    return [Row(dict(zip(header, fields, strict=True)), source, line) for line, fields in records]


def _twice(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


def no_header(names: Iterable[str]) -> str:
    """The mend for a table whose first line is already data."""
    shown = ", ".join(f"{position} = {name[:24]!r}" for position, name in enumerate(names))
    return ("where the file has no header line, give the positions of its columns, counted from 0, as in "
            f"data.columns: {{label: 1, text: 3}}; here {shown}")


def _read_parquet(content: bytes, source: str, wanted: list[str]) -> list[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        twice = _twice(pyarrow.parquet.read_schema(pyarrow.BufferReader(content)).names)
        if twice is not None:
            raise InputError(f"it has the column {twice!r} twice; rename one of them", file=source)
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"not a readable parquet file: {str(error).splitlines()[0]}", file=source) from None
    return [Row(fields, source, number, "row") for number, fields in enumerate(table.to_pylist(), start=1)]


READERS: dict[str, Callable[[bytes, str, list[str]], list[Row]]] = {
    ".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".tsv": _read_tsv, ".parquet": _read_parquet}
