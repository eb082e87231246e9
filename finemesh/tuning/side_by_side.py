"""Parts of a batch at the same time, each in a thread of its own with its share of the processor's threads.

Threads that compute one product together wait for each other at its end, thousands of times a step, and small operations
gain nothing from a second thread; parts of a batch wait for each other once (LOG.md). What is summed over parts is summed in
their order, so that a run can be repeated to the last bit.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache
from typing import TypeVar

import torch

from finemesh.tuning.data.batches import Encoded

SIDES = 2  # each with half of the threads: more were not measured

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(call: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """call(item) for each of at most SIDES items, in their order; autocast, gradients and context variables are as here.

    Raises what a call raises, when all have ended.
    """
    if len(items) == 1:
        return [call(items[0])]
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    autocast, dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    def alone(item: Item) -> Result:
        torch.set_num_threads(max(1, threads // len(items)))
        with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype, enabled=autocast):
            return call(item)

    try:
        begun = [_pool().submit(copy_context().run, alone, item) for item in items]
        ended = [future.exception() for future in begun]
    finally:
        torch.set_num_threads(threads)  # of MKL, whose number holds for all threads
    for error in ended:
        if error is not None:
            raise error
    return [future.result() for future in begun]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(SIDES, "side")


def sides(rows: Sequence[Encoded]) -> list[list[Encoded]]:
    """The rows in at most SIDES parts of about as many tokens: the longest first, each to the part with the fewest."""
    parts: list[list[Encoded]] = [[] for _ in range(min(SIDES, len(rows)))]
    tokens = [0] * len(parts)
    for row in sorted(rows, key=lambda row: -len(row.input_ids)):
        fewest = tokens.index(min(tokens))
        parts[fewest].append(row)
        tokens[fewest] += len(row.input_ids)
    return parts
