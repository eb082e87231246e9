"""Reading: what is fine, and the one message for each thing that is not."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from finemesh.errors import InputError
from finemesh.tuning.data.files import READERS, read_rows


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def fields(source: str, **options: object) -> list[dict]:
    return [dict(row.fields) for row in read_rows(source, **options)]


PAIR = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize("content", [
    b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\n',
    b'{"prompt": "a", "completion": "b"}\r\n\r\n',
    b'\n{"prompt": "a", "completion": "b"}\n\n\n  \n',
    b'{"prompt": "a", "completion": "b"}',
], ids=["byte order mark", "CRLF", "blank lines", "no last line end"])
def test_jsonl_takes_what_editors_leave(tmp_path: Path, content: bytes) -> None:
    assert fields(write(tmp_path, "d.jsonl", content)) == [PAIR]


def test_jsonl_lines_are_counted_with_the_blank_ones_and_end_at_line_feeds_only(tmp_path: Path) -> None:
    source = write(tmp_path, "d.jsonl", '\n{"text": "one\u2028two\x85"}\n\n{"text": "three"}\n')
    rows = read_rows(source)
    assert [(row.line, row.fields["text"]) for row in rows] == [(2, "one\u2028two\x85"), (4, "three")]


@pytest.mark.parametrize("document", [
    [PAIR, PAIR], {"canary": "x", "examples": [PAIR, PAIR]}, {"prompt": ["a", "a"], "completion": ["b", "b"]},
], ids=["list", "a list inside", "columns"])
def test_json_shapes(tmp_path: Path, document: object) -> None:
    assert fields(write(tmp_path, "d.json", json.dumps(document, indent=2))) == [PAIR, PAIR]


def test_json_that_is_one_object_a_line(tmp_path: Path) -> None:
    assert fields(write(tmp_path, "d.json", '{"prompt": "a", "completion": "b"}\n' * 3)) == [PAIR] * 3


@pytest.mark.parametrize("content", [
    'text,label\r\n"one, ""two""\nthree",x\r\n\r\nfour,y\r\n', 'text;label\n"one, ""two""\nthree";x\n\nfour;y\n'])
def test_csv(tmp_path: Path, content: str) -> None:
    rows = read_rows(write(tmp_path, "d.csv", content))
    assert [(row.line, row.fields["label"]) for row in rows] == [(2, "x"), (5, "y")]
    assert rows[0].fields["text"].replace("\r", "") == 'one, "two"\nthree'


@pytest.mark.parametrize(("content", "first"), [
    ("good, really;1\nbad;0\n", {"0": "good, really", "1": "1"}),
    ('"a, b";1\n"c, d";0\n', {"0": "a, b", "1": "1"}),
    ("good; really,1\nbad,0\n", {"0": "good; really", "1": "1"}),
])
def test_a_csv_is_separated_by_what_divides_all_its_records_alike(tmp_path: Path, content: str, first: dict[str, str]) -> None:
    assert fields(write(tmp_path, "d.csv", content), columns={"text": 0})[0] == first


@pytest.mark.parametrize("name", ["d.csv", "d.tsv"])
def test_a_row_of_blank_fields_is_one_but_above_the_header(tmp_path: Path, name: str) -> None:
    rows = read_rows(write(tmp_path, name, ",\ntext,label\na,x\n,\n\n".replace(",", "," if name == "d.csv" else "\t")))
    assert [(row.line, row.fields["text"], row.blank) for row in rows] == [(3, "a", False), (4, "", True)]
    assert fields(write(tmp_path, "p.csv", ",\na,x\n"), columns={"text": 0})[0] == {"0": "", "1": ""}


@pytest.mark.parametrize(("line", "text"), [
    ('"Shut up" at them.\tx', '"Shut up" at them.'), ('"Hello\tx', '"Hello'), ('say "no"\tx', 'say "no"'),
    ('"a\ttab"\tx', "a\ttab"), ('"two ""words"""\tx', 'two "words"'), ('"two\nlines"\tx', "two\nlines")])
def test_tsv_quotes_count_only_where_they_close(tmp_path: Path, line: str, text: str) -> None:
    rows = fields(write(tmp_path, "d.tsv", f"text\tlabel\n{line}\nplain\ty\n"))
    assert rows == [{"text": text, "label": "x"}, {"text": "plain", "label": "y"}]


def test_an_open_quote_in_a_tsv_swallows_no_lines(tmp_path: Path) -> None:
    rows = fields(write(tmp_path, "d.tsv", 'text\tlabel\n"one\tx\ntwo\tx\nthree"\ty\n'))
    assert [row["text"] for row in rows] == ['"one', "two", 'three"']


def test_a_table_without_a_header_is_read_by_positions(tmp_path: Path) -> None:
    source = write(tmp_path, "d.tsv", "gj04\t1\t\tOne.\ngj04\t0\t*\tTwo.\n")
    assert fields(source, columns={"label": 1, "text": 3})[1] == {"0": "gj04", "1": "0", "2": "*", "3": "Two."}
    assert len(fields(source, columns={"label": "1", "text": "3"})) == 2


def test_a_header_may_be_made_of_numbers(tmp_path: Path) -> None:
    assert fields(write(tmp_path, "d.csv", "0,1\na,x\n"), columns={"text": "0", "label": "1"}) == [{"0": "a", "1": "x"}]


def test_long_fields_are_fine(tmp_path: Path) -> None:
    assert len(fields(write(tmp_path, "d.csv", "text,label\n" + "a" * 300_000 + ",x\n"))[0]["text"]) == 300_000


def test_hidden_byte_order_mark_in_a_table(tmp_path: Path) -> None:
    assert fields(write(tmp_path, "d.tsv", b"\xef\xbb\xbftext\tlabel\na\tx\n")) == [{"text": "a", "label": "x"}]


@pytest.mark.parametrize(("name", "content", "said"), [
    ("d.jsonl", '{"a": 1}\n{"a": \n', ["d.jsonl, line 2", "malformed JSON"]),
    ("d.jsonl", '{"a": 1}\n"text"\n', ["line 2", '"text" is not an object']),
    ("d.jsonl", '[{"a": 1}]\n', ["line 1", ".json"]),
    ("d.jsonl", '{"a": 1}\n{"a \\ud800": 1}\n', ["line 2", "half of a surrogate pair", r"'a \ud800'"]),
    ("d.json", '[{"a": 1},\n {"a": }]', ["line 2", "malformed JSON"]),
    ("d.jsonl", '{"a": 1}\n' + "[" * 100_000, ["line 2", "brackets within brackets"]),
    ("d.json", "[" * 100_000, ["d.json", "brackets within brackets"]),
    ("d.jsonl", '{"a": 1}\n{"a": ' + "7" * 5000 + "}\n", ["line 2", "character 7: an integer of more than 4300 digits"]),
    ("d.json", '[{"a": 1},\n {"a": ' + "7" * 5000 + "}]", ["line 2", "of more than 4300 digits", "write it as text"]),
    ("d.json", '{"a": "b"}', ["a list of rows is expected"]),
    ("d.json", '{"train": [{"a": 1}], "validation": [{"a": 2}]}', ["holds several tables (train, validation); write each to"]),
    ("d.json", '[{"a": 1}, 3]', ["row 2", "3 is not an object"]),
    ("d.csv", 'text,label\n"one" more,x\n', ["line 2", "malformed CSV"]),
    ("d.csv", 'text,label\na,x\n"never closed,x\n', ["line 3", "malformed CSV"]),
    ("d.csv", '"text, whole";label\na;x\nb;c;x\n', ["line 3", "3 fields", "(text, whole, label)"]),
    ("d.csv", "text,label\na,x\nb,c,x\n", ["line 3", "3 fields", "(text, label)"]),
    ("d.tsv", "text\tlabel\nb\n", ["line 2", "1 fields"]),
    ("d.csv", "good,good,1\nbad,bad,0\n", ["line 1", "'good' twice", "data.columns: {label: 1, text: 3}"]),
    ("d.parquet", "not parquet", ["not a readable parquet file"]),
    ("d.txt", "text", ["unknown kind of file '.txt'", ".jsonl"]),
    ("d", "text", ["unknown kind of file 'd'"]),
    ("d.jsonl.gz", "text", ["this is packed; unpack it and name the file in it, as d.jsonl"]),
    ("d.jsonl", b'{"a": "ok"}\n{"a": "caf\xe9"}\n', ["line 2", "0xe9", "offset 22", "UTF-8"]),
    ("d.csv", b'\xef\xbb\xbftext\n\xff', ["line 2", "0xff", "offset 8"]),
    ("d.csv", "text,label\n".encode("utf-16"), ["line 1", "looks like UTF-16"]),
    *((f"d{kind}", content, ["no row"]) for kind in (".jsonl", ".json", ".csv", ".tsv") for content in ("", "\n \n")),
    ("d.csv", "text,label\n", ["no row"]), ("d.json", "[]", ["no row"]),
])
def test_what_is_wrong_is_said(tmp_path: Path, name: str, content: str | bytes, said: list[str]) -> None:
    source = write(tmp_path, name, content)
    with pytest.raises(InputError) as raised:
        read_rows(source)
    assert str(raised.value).startswith(source)
    for words in said:
        assert words in str(raised.value)


def test_a_column_of_a_parquet_file_that_is_there_twice(tmp_path: Path) -> None:
    table = pyarrow.table([["a"], ["b"], ["x"]], names=["text", "text", "label"])
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"d\.parquet: it has the column 'text' twice; rename one of them"):
        read_rows(str(tmp_path / "d.parquet"))


@pytest.mark.parametrize("name", ["missing.jsonl", "./missing", "/no/such/file.txt", "a/b/c"])
def test_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="there is no such file"):
        read_rows(name)


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="directory"):
        read_rows(str(tmp_path))


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    source = write(tmp_path, "d.jsonl", "{}")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"d\.jsonl: cannot be read: Permission denied"):
        read_rows(source)


def test_every_reader_is_known_by_a_suffix() -> None:
    assert set(READERS) == {".jsonl", ".json", ".csv", ".tsv", ".parquet"}
