"""A full disk ends the command with one message, and what was written is whole."""

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from finemesh.errors import InputError
from finemesh.run import RunFolder
from finemesh.trial import Outcome


@pytest.fixture(params=[160, 400, 600])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Of so many kB: the store is made in 120, a trial takes some 50 until SQLite's log is folded into it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(disk)], capture_output=True,
                           check=False, text=True)
    if mount.returncode:
        pytest.skip(f"cannot mount a small disk here: {mount.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_stops_the_search_which_goes_on_when_there_is_room(fake: SimpleNamespace, tmp_path: Path,
                                                                                small_disk: Path) -> None:
    whole = fake.search(tmp_path / "run", 12)
    with pytest.raises(InputError, match=r"the disk that holds .*disk/run.* is full. Nothing half-written was left"):
        fake.search(small_disk / "run", 12)
    ended = RunFolder(small_disk / "run").outcomes()
    assert len(ended) < 12
    assert ended == whole[: len(ended)]
    assert not list(small_disk.rglob(".outcome.json*"))
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert fake.search(small_disk / "run", 12) == whole


def test_a_trial_that_finds_the_disk_full_is_no_failed_trial(fake: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the disk that holds .*0002 is full"):
        fake.search(tmp_path, 4, script={"full": [2]})
    assert [outcome.state for outcome in RunFolder(tmp_path).outcomes()] == ["complete", "complete"]
    assert len(fake.search(tmp_path, 4)) == 4


def test_an_outcome_that_cannot_be_copied_is_said(fake: SimpleNamespace, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, outcome: Outcome) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("finemesh.search.jobs.write_outcome", full)
    with pytest.raises(InputError, match="is full"):
        fake.search(tmp_path, 2, script={"error": [1]})
