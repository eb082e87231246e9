"""A result where the terminal's encoding lacks some of its letters."""

import io
import json
import sys

import pytest

from finemesh.output import opened_output

ANSWER = "“Grüße” 😀"


def written(monkeypatch: pytest.MonkeyPatch, encoding: str, *, as_json: bool) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with opened_output(as_json) as output:
        if as_json:
            output.show([ANSWER])
        else:
            print(ANSWER, file=output.stream)
    stream.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize(("encoding", "shown"), [
    ("utf-8", ANSWER), ("latin-1", "\\u201cGrüße\\u201d \\U0001f600"), ("ascii", "\\u201cGr\\xfc\\xdfe\\u201d \\U0001f600")])
def test_letters_that_an_encoding_lacks(monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str) -> None:
    assert written(monkeypatch, encoding, as_json=False) == shown + "\n"
    document = written(monkeypatch, encoding, as_json=True)
    assert json.loads(document) == [ANSWER]
    assert (ANSWER in document) == (encoding == "utf-8")
