"""The gradients of a batch's losses, in two parts at the same time where that is faster."""

from collections.abc import Sequence
from functools import cached_property

import torch
from accelerate import Accelerator
from torch import nn

from finemesh.tuning.data.batches import Encoded, collate
from finemesh.tuning.evaluation.loss import batch_losses
from finemesh.tuning.kernels import common_share, runs_in_threads
from finemesh.tuning.kernels.int8 import in_int8
from finemesh.tuning.models import TaskName
from finemesh.tuning.side_by_side import SIDES, side_by_side, sides

LIGHT = 0.25  # of the weights: the gradients of so many may be held twice
AGAIN = 0.1  # of a batch's tokens: where parts would compute more than that a second time, the whole is faster (LOG.md)


class Gradients:
    """Of the trained parameters of a model; `longest`: tokens of its longest row."""

    def __init__(self, tuned: nn.Module, task: TaskName, pad_id: int, accelerator: Accelerator, longest: int, *,
                 int8: bool = False) -> None:
        self.parameters = [p for p in tuned.parameters() if p.requires_grad]
        self._tuned, self._task, self._pad_id, self._accelerator = tuned, task, pad_id, accelerator
        self._longest, self._int8 = longest, int8

    def add(self, rows: Sequence[Encoded], divisor: float) -> list[torch.Tensor]:
        """Those of the rows' sum of losses over `divisor`, to what `grad` holds; the losses, part by part."""
        if not self._in_threads or (SIDES - 1) * common_share(self._tuned, [row.input_ids for row in rows]) > AGAIN:
            losses = self._losses(rows)
            self._accelerator.backward(losses.sum() / divisor)
            return [losses.detach()]

        def part(rows: Sequence[Encoded]) -> tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]:
            losses = self._losses(rows)
            return losses.detach(), torch.autograd.grad(losses.sum() / divisor, self.parameters, allow_unused=True)

        found = side_by_side(part, sides(rows))
        for _, gradients in found:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                if gradient is not None:  # laid out as the weights, which the fused AdamW takes for granted
                    parameter.grad = gradient.contiguous() if parameter.grad is None else parameter.grad.add_(gradient)
        return [losses for losses, _ in found]

    def _losses(self, rows: Sequence[Encoded]) -> torch.Tensor:
        with self._accelerator.autocast(), in_int8(self._int8):
            batch = collate(rows, self._pad_id).to(self._accelerator.device)
            return batch_losses(self._tuned, batch, self._task).losses

    @cached_property
    def _in_threads(self) -> bool:
        trained, whole = sum(p.numel() for p in self.parameters), sum(p.numel() for p in self._tuned.parameters())
        return self._task == "instruct" and trained <= LIGHT * whole and runs_in_threads(self._tuned, self._longest)
