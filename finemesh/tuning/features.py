"""A frozen model under a trained head. What the model computes of a batch is computed once, and kept for the runs to come.

Kept by batch and not by row, so that a run that finds everything gives bit for bit the numbers of one that computes it: a
row's states depend, in the last digits, on the rows beside it. Runs of one seed have the same batches. They lie in a file
without a name, which goes with the process: in memory they would count as a trial's, and 50,000 rows have many gigabytes.
"""

import hashlib
import math
import tempfile
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from typing import IO, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from finemesh.tuning.data.batches import Batch
from finemesh.tuning.kernels.int8 import in_int8

LARGEST = 20 * 10**9  # bytes of the file; what comes after them is computed each time
States = tuple[torch.Tensor, ...]


class Features:
    """States by batch, of one base model; it may be loaded anew."""

    def __init__(self) -> None:
        self._places: dict[bytes, list[tuple[int, torch.Size, torch.dtype]]] = {}
        self._end = 0

    @cached_property
    def _file(self) -> IO[bytes]:
        lives_as_long = ExitStack()
        weakref.finalize(self, lives_as_long.close)
        return lives_as_long.enter_context(tempfile.TemporaryFile(prefix="finemesh-"))

    def of(self, batch: Batch, compute: Callable[[], States]) -> States:
        """What was computed of this batch before, in the same arithmetic; else it is computed now."""
        device = batch.input_ids.device
        key = _fingerprint(batch)
        if key in self._places:
            return tuple(self._read(*place).to(device) for place in self._places[key])
        with in_int8(False):
            states = compute()
        self._keep(key, states)
        return states

    def _read(self, offset: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        self._file.seek(offset)
        data = bytearray(self._file.read(math.prod(shape) * dtype.itemsize))
        return torch.frombuffer(data, dtype=dtype).view(shape)

    def _keep(self, key: bytes, states: States) -> None:
        places, end = [], self._end
        if end + sum(state.nbytes for state in states) > LARGEST:
            return
        try:
            self._file.seek(end)
            for state in states:
                self._file.write(state.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
                places.append((end, state.shape, state.dtype))
                end += state.nbytes
            self._file.flush()
        except OSError:  # a full disk: computed again when next wanted
            return
        self._places[key], self._end = places, end


class Probe(nn.Module):
    """`model` with a head that may be trained; everything before the head is frozen and without dropout."""

    def __init__(self, model: PreTrainedModel, features: Features) -> None:
        super().__init__()
        self.model = model
        self.features = features

    @property
    def body(self) -> nn.Module:
        """What comes before the head and its dropout."""
        body: nn.Module = self.model.base_model
        return body

    def train(self, mode: bool = True) -> "Probe":
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.model(*arguments, **named)


def _fingerprint(batch: Batch) -> bytes:
    device = batch.input_ids.device.type
    arithmetic = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    found = hashlib.blake2b(str(arithmetic).encode(), digest_size=16)
    for tensor in (batch.input_ids, batch.lengths, batch.scored, batch.token_type_ids):
        found.update(b"/" if tensor is None else f"/{tuple(tensor.shape)}".encode() + tensor.cpu().numpy().tobytes())
    return found.digest()
