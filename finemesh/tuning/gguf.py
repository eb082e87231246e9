"""A .gguf file as a folder of safetensors, converted once, in float32 (so that plain transformers gives the same losses)."""

import hashlib
import os
import shutil
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from finemesh.disk import permit
from finemesh.errors import FieldError, first_line

CONVERSION = "1"  # raised when the conversion changes, so that old cache entries are not used


def cache_folder() -> Path:
    """FINEMESH_CACHE, else finemesh in the user's cache folder."""
    given = os.environ.get("FINEMESH_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "finemesh"


def converted(file: Path) -> Path:
    """The safetensors folder of a GGUF file: converted once, whole or not at all, also when two processes want it."""
    status = file.stat()
    key = hashlib.sha256(f"{CONVERSION} {file.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = cache_folder() / "models" / f"{file.stem}-{key}"
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                _convert(file, folder)
    except Exception as error:  # whatever the reader of a broken file trips over
        raise FieldError(f"{file} could not be converted from GGUF: {first_line(error)}", "model") from error
    return folder


def _convert(file: Path, folder: Path) -> None:
    draft = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):  # a bar that cannot be turned off
            loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        config = type(loaded.config).from_dict({k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # a model loaded from GGUF does not save
        fresh.load_state_dict(loaded.state_dict())
        fresh.generation_config = loaded.generation_config
        fresh.save_pretrained(draft)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(draft)
        permit(draft, like=draft / "config.json")
        draft.chmod(folder.parent.stat().st_mode)  # the cache may be one for several people
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
