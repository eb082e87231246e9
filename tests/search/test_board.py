"""What processes that share a run leave each other; tests/real/test_sharing.py starts such processes."""

from pathlib import Path

from finemesh.run import RunFolder
from finemesh.search.board import Board
from finemesh.trial import Job


def test_a_job_is_taken_once_and_free_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    job = Job(7, "lora", {"rank": 8}, 0, 20, run.trial(7))
    one, other = Board(run), Board(RunFolder(tmp_path))
    one.post(job)
    assert other.posted() == [job]
    assert one.take(job)
    assert one.take(job)
    assert not other.take(job)
    one.give_back(job)
    assert other.take(job)
    other.remove(job)
    assert one.posted() == []
    assert list(run.jobs.iterdir()) == []


def test_a_run_folder_may_have_other_names_elsewhere(tmp_path: Path) -> None:
    here = RunFolder(tmp_path / "here")
    here.path.mkdir()
    Board(here).post(Job(7, "lora", {"rank": 8}, 0, 20, here.repeat(7, 2)))
    (tmp_path / "there").symlink_to(here.path)
    there = RunFolder(tmp_path / "there")
    assert [job.folder for job in Board(there).posted()] == [there.repeat(7, 2)]
