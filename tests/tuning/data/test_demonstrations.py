"""What is shown of several tasks on one file: never the row itself, as whichever of them puts it."""

import json
from pathlib import Path

import pytest

from finemesh.tuning.data.demonstrations import Demonstrations
from finemesh.tuning.data.examples import Dialogue, from_json
from finemesh.tuning.data.instructions import Template
from finemesh.tuning.data.mixture import TaskSource, load_tasks

TEMPLATES = {"judge": "{text} Good or bad? => {label}", "mood": "What is the mood of this: {text} => {label}",
             "write": "Write something {label}, number {number}. => {text}"}


@pytest.mark.parametrize("selection", ["fixed", "random", "similar"])
def test_a_row_is_not_shown_as_another_task_puts_it(tmp_path: Path, selection: str) -> None:
    lines = [{"text": f"<{i}> film", "label": "good" if i % 2 else "bad", "number": i} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = {name: TaskSource(str(tmp_path / "a.jsonl"), [Template.read(text)], name) for name, text in TEMPLATES.items()}
    written = [from_json(example.to_json()) for example in load_tasks(tasks).train]  # as a worker reads them
    rows = [row for row in written if isinstance(row, Dialogue)]

    def text(row: Dialogue) -> str:
        whole = row.prompt + row.answer
        return whole[whole.index("<"):whole.index(">")]

    assert max(sum(text(row) == text(other) for other in rows) for row in rows) == 3
    pool = Demonstrations(tuple(rows), 0)
    for row in rows:
        shown = getattr(pool, selection)(row, 4)
        assert len(shown) == 4
        assert text(row) not in {text(other) for other in shown}
