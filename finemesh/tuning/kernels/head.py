"""Cross-entropy of a vocabulary head, part by part: the logits of a part are gone before the next one's are there.

loss_i = -log softmax(W h_i)[t_i], and with p_i = softmax(W h_i) - onehot(t_i): dh_i = g_i W^T p_i, dW = sum_i g_i p_i h_i^T,
where g_i is the gradient that reaches loss_i. A frozen head's dh_i / g_i is computed beside the loss, while p_i is at hand.
Tokens without a row in W can be given as one more: the log of the sum of exp of their logits.

A part is a tile of the vocabulary for all positions: its rows of W and its logits stay in the caches for both products, and
the softmax goes on from tile to tile by its largest logit so far (Milakov & Gimelshein, arXiv 1805.02867).

In bfloat16 a frozen head's dh_i leaves out the tokens that no position of its chunk gives a share of NEGLIGIBLE (after
Wijmans et al., arXiv 2411.09009): three quarters of the vocabulary, which change dh by a third of what rounding does (LOG.md).
There a part is a chunk of the positions for the whole vocabulary: what is negligible is known at its end, and tiles are no
faster.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numba import prange
from torch.autograd import Function

from finemesh.tuning.kernels.compiled import exp, highest_of, kernel, narrow, run, wide

CHUNK = 256  # positions
NEGLIGIBLE = 2.0 ** -16  # probability, where a chunk has CHUNK positions; in one of fewer, which miss more, as much less
BLOCK = 512  # columns that one thread looks through
TILE = 1024  # tokens of the vocabulary


@kernel
def _surprise(logits: Any, targets: Any, others: Any, losses: Any, normal: Any, in_place: bool) -> None:
    """Each row's loss and log sum exp(logits); where `in_place`, the logits become softmax(logits) - onehot(target).

    others[i]: the logit of one more token, whose number is that of the columns; minus infinity where there is none.
    """
    rows, vocabulary = logits.shape
    for i in prange(rows):
        highest, other = highest_of(logits[i]), others[i]
        if other > highest or other != other:
            highest = other
        total = exp(other - highest) if other != -np.inf else np.float32(0)
        for j in range(vocabulary):
            total += exp(wide(logits[i, j]) - highest)
        target = targets[i]
        normal[i] = np.log(total) + highest
        aim = wide(logits[i, target]) if target < vocabulary else other
        losses[i] = normal[i] - aim
        if in_place:
            share = np.float32(1) / total
            for j in range(vocabulary):
                logits[i, j] = narrow(exp(wide(logits[i, j]) - highest) * share, logits)
            if target < vocabulary:
                logits[i, target] = narrow(exp(aim - highest) * share - np.float32(1), logits)


@kernel
def _go_on(logits: Any, targets: Any, first: int, highest: Any, total: Any, aim: Any, mean: Any) -> None:
    """One tile more, of the tokens from `first` on: highest[i], the largest logit so far; total[i], the sum of exp(logit -
    highest[i]); aim[i], the target's logit. `mean`, the sums of the rows of W by those so far, follows a new
    highest, and the logits become exp(logit - highest); not where it is of no lines."""
    rows, width = logits.shape
    for i in prange(rows):
        line, before = logits[i], highest[i]
        now = highest_of(line)
        if before > now or before != before:
            now = before
        scale = np.float32(1)
        if now != before:
            scale = exp(before - now) if before != -np.inf else np.float32(0)
            if len(mean):
                for j in range(mean.shape[1]):
                    mean[i, j] *= scale
            highest[i] = now
        target = targets[i] - first
        if target >= 0 and target < width:
            aim[i] = wide(line[target])
        added = np.float32(0)
        for j in range(width):
            added += exp(wide(line[j]) - now)
        if len(mean):
            for j in range(width):
                line[j] = narrow(exp(wide(line[j]) - now), logits)
        total[i] = total[i] * scale + added


@kernel
def _reach(logits: Any, thresholds: Any, reached: Any) -> None:
    """reached[j]: 1 where the logit of token j is at or above the row's threshold in any row, else 0."""
    rows, vocabulary = logits.shape
    for block in prange((vocabulary + BLOCK - 1) // BLOCK):
        own = reached[block * BLOCK:min((block + 1) * BLOCK, vocabulary)]
        for j in range(len(own)):
            own[j] = 0
        for i in range(rows):
            line, threshold = logits[i, block * BLOCK:block * BLOCK + len(own)], thresholds[i]
            for j in range(len(own)):
                own[j] |= np.int32(wide(line[j]) >= threshold)


@kernel
def _errors(logits: Any, targets: Any, normal: Any, columns: Any, place: Any, errors: Any) -> None:
    """errors = (softmax(logits) - onehot(targets))[:, columns]; target t is column place[t] of them."""
    rows, count = errors.shape
    for i in prange(rows):
        for k in range(count):
            errors[i, k] = narrow(exp(wide(logits[i, columns[k]]) - normal[i]), errors)
        target = targets[i]
        errors[i, place[target]] = narrow(exp(wide(logits[i, target]) - normal[i]) - np.float32(1), errors)


def cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor,
                  others: torch.Tensor | None = None) -> torch.Tensor:
    """hidden (scored, width), weight (vocab, width), targets (scored,) -> losses (scored,) float32, nats.

    others (scored,) float32: log sum exp of the logits of the tokens that have no row in `weight`, as target number vocab;
    for weights that are trained.
    """
    if not on_processor(hidden):
        return _plain(hidden, weight, targets, others)
    if not torch.is_grad_enabled():  # a Function sees only what could be asked for, and would keep every chunk for it
        hidden, weight = hidden.detach(), weight.detach()
    losses: torch.Tensor = _CrossEntropy.apply(hidden, weight, targets, others)
    return losses


@torch.no_grad()
def log_sum_outside(hidden: torch.Tensor, weight: torch.Tensor, inside: torch.Tensor,
                    targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the tokens that are not `inside`: log sum exp of their logits, and the loss among them of the targets that are one
    of them (of others it means nothing). Both (scored,) float32; minus infinity and 0 where every token is inside."""
    log_sum, losses = hidden.new_full((2, len(hidden)), 0, dtype=torch.float32)
    if len(inside) == len(weight):
        return log_sum.fill_(-math.inf), losses
    weight = weight.to(hidden.dtype)
    for start in range(0, len(hidden), CHUNK):
        part = slice(start, start + CHUNK)
        logits = (hidden[part] @ weight.t()).index_fill_(1, inside, -math.inf)
        if on_processor(logits):
            run(_surprise, logits, targets[part], _none(logits), losses[part], log_sum[part], False)
        else:
            log_sum[part] = logits.float().logsumexp(1)
            losses[part] = log_sum[part] - logits.gather(1, targets[part, None])[:, 0]
    return log_sum, losses


def on_processor(tensor: torch.Tensor) -> bool:
    """Where the compiled kernels run."""
    return tensor.device.type == "cpu"


def _plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, others: torch.Tensor | None) -> torch.Tensor:
    logits = (hidden @ weight.t().to(hidden.dtype)).float()
    if others is not None:
        logits = torch.cat([logits, others[:, None]], 1)
    return F.cross_entropy(logits, targets, reduction="none")


def _none(logits: torch.Tensor) -> torch.Tensor:
    """No other token, for each row."""
    return torch.full((len(logits),), -math.inf)


def _d_hidden(logits: torch.Tensor, targets: torch.Tensor, normal: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """softmax(logits) - onehot(targets), times the head, without the tokens whose share is negligible in every row."""
    reached = torch.empty(logits.size(1), dtype=torch.int32)
    run(_reach, logits, normal + math.log(NEGLIGIBLE * len(logits) / CHUNK), reached)
    reached[targets] = 1
    columns = reached.nonzero()[:, 0]
    if 2 * len(columns) > len(head):  # as an untrained model finds them: copying would cost more than it saves
        run(_surprise, logits, targets, _none(logits), torch.empty_like(normal), normal, True)
        return logits @ head
    errors = logits.new_empty(len(logits), len(columns))
    run(_errors, logits, targets, normal, columns, reached.cumsum(0) - 1, errors)
    return errors @ head[columns]


def _by_tiles(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, others: torch.Tensor,
              differentiated: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The losses, and what a frozen head's dh is; in float32."""
    count, seen = len(hidden), others > -math.inf
    highest, total, aim = others.clone(), seen.float(), others.clone()
    mean = torch.zeros_like(hidden) if differentiated else hidden.new_empty(0, hidden.size(1))
    memory = hidden.new_empty(count * TILE)
    for first in range(0, len(head), TILE):
        rows = head[first:first + TILE]
        logits = torch.mm(hidden, rows.t(), out=memory[:count * len(rows)].view(count, len(rows)))
        run(_go_on, logits, targets, first, highest, total, aim, mean)
        if differentiated:
            mean.addmm_(logits, rows)
    losses = total.log() + highest - aim
    return losses, mean.div_(total[:, None]).sub_(head[targets]) if differentiated else None


def _by_chunks(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, others: torch.Tensor,
               differentiated: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The same in bfloat16, where dh leaves out what is negligible."""
    losses, normal = torch.empty(len(hidden)), torch.empty(len(hidden))
    d_hidden = torch.empty_like(hidden) if differentiated else None
    memory = hidden.new_empty(min(CHUNK, len(hidden)), len(head))
    for start in range(0, len(hidden), CHUNK):
        part = slice(start, start + CHUNK)
        logits = torch.mm(hidden[part], head.t(), out=memory[:len(hidden) - start])
        run(_surprise, logits, targets[part], others[part], losses[part], normal[part], False)
        if d_hidden is not None:
            d_hidden[part] = _d_hidden(logits, targets[part], normal[part], head)
    return losses, d_hidden


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor,
                others: torch.Tensor | None) -> torch.Tensor:
        needs_hidden, trained, *_ = ctx.needs_input_grad
        head, beside = weight.to(hidden.dtype), _none(hidden) if others is None else others
        d_hidden = errors = p_others = None
        if trained:
            losses, normal, errors = torch.empty(len(hidden)), torch.empty(len(hidden)), hidden @ head.t()
            run(_surprise, errors, targets, beside, losses, normal, True)
            p_others = None if others is None else (others - normal).exp() - (targets == len(head)).float()
        else:
            by_parts = _by_chunks if hidden.dtype == torch.bfloat16 else _by_tiles
            losses, d_hidden = by_parts(hidden, head, targets, beside.contiguous(), needs_hidden)
        ctx.save_for_backward(d_hidden, hidden, head, errors, p_others)
        return losses

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        d_hidden, hidden, head, errors, p_others = ctx.saved_tensors
        d_others = None if p_others is None else p_others * g
        g = g.to(hidden.dtype)[:, None]
        if errors is None:
            return None if d_hidden is None else d_hidden * g, None, None, d_others
        return ((errors @ head) * g if ctx.needs_input_grad[0] else None, (errors.t() @ (hidden * g)).float(), None, d_others)
