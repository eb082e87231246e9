"""Files that are written whole or not at all, and the full disk that the user has to mend."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finemesh.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to be written, which takes its place when the block ends and goes when it fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def permit(folder: Path, like: Path) -> None:
    """Its files may be read by whoever may read `like`: safetensors leaves them to their owner alone."""
    for file in folder.rglob("*"):
        if file.is_file():
            with suppress(OSError):  # a disk that keeps no permissions
                file.chmod(like.stat().st_mode)


def size(folder: Path) -> int:
    """Bytes of its files; 0 where there is none."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """Says which disk is full, where writing below `path` finds it so."""
    try:
        yield
    except Exception as error:
        if says_full(str(error)):
            raise disk_is_full(path) from error
        raise


def says_full(text: str) -> bool:
    """shutil, safetensors, tokenizers and other processes pass on the system's words, not its number."""
    return any(os.strerror(number) in text for number in FULL)


def disk_is_full(path: Path) -> InputError:
    return InputError(f"the disk that holds {path} is full. Nothing half-written was left: make room, then start the "
                      "same command again, and it goes on where it stopped.")
