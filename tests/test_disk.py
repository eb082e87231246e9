"""Files are written whole or not at all, and a full disk is the user's to mend, whoever found it full."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from finemesh.disk import full_disk, write_text
from finemesh.errors import InputError


def test_a_file_that_breaks_off_leaves_the_former_one_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "page", "former")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "page", "half\ud800")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("page", "former")]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("raised", [
    lambda words, number: OSError(number, words, "adapter"),
    lambda words, number: shutil.Error([("adapter", "best", f"[Errno {number}] {words}: 'best'")]),
    lambda words, number: Exception(f"{words} (os error {number})"),  # tokenizers'
])
def test_a_full_disk_is_the_users_to_mend(tmp_path: Path, number: int, raised: object) -> None:
    assert callable(raised)
    with pytest.raises(InputError, match=f"the disk that holds {tmp_path} is full"), full_disk(tmp_path):
        raise raised(os.strerror(number), number)


def test_another_failure_to_write_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), full_disk(tmp_path):
        raise PermissionError(errno.EACCES, "no")
