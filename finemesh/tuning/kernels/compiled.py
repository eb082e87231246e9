"""What compiled kernels are written with: numba, and bfloat16, for which numpy has no type.

Kernels see float32 arrays as they are and bfloat16 ones as their bits (uint16): `wide` reads, `narrow` writes either; sums are
in float32. A kernel is compiled at its first call, which the machine remembers, and runs on the threads that torch uses.
Nothing may be assumed finite: a loss that is no number has to show. A sum is taken in a loop that writes nothing: where it was
not, the process that compiled a kernel had another last digit than those that found it compiled (LOG.md).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

Function = Callable[..., Any]
STORED = {torch.float32: torch.float32, torch.bfloat16: torch.uint16, torch.int8: torch.int8, torch.int32: torch.int32,
          torch.int64: torch.int64}
WORD = ir.IntType(32)
SQUARE = 16
FREEDOM = {"reassoc", "contract", "nsz", "arcp"}  # of the order of sums; not that there are no NaN and no infinities


def kernel(function: Function) -> Function:
    """Compiled, over several threads where it says numba.prange."""
    compiled: Function = numba.njit(parallel=True, cache=True, nogil=True, fastmath=FREEDOM)(function)
    return compiled


def inlined(function: Function) -> Function:
    """Compiled as a part of kernels."""
    compiled: Function = numba.njit(cache=True, nogil=True, fastmath=FREEDOM)(function)
    return compiled


def operation(build: Function) -> Function:
    """One that numba does not have, for use in kernels: `build` gives its signature and its LLVM instructions."""
    found: Function = intrinsic(build)
    return found


def run(kernel: Function, *arguments: Any) -> None:
    """Call a kernel; tensors become arrays that share their memory."""
    numba.set_num_threads(min(torch.get_num_threads(), config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    kernel(*(_array(argument) if isinstance(argument, torch.Tensor) else argument for argument in arguments))


@cache
def thread_safe() -> bool:
    """Whether several threads may run kernels at the same time: with numba's own layer, workqueue, that ends the process."""
    threads = torch.get_num_threads()
    run(_nothing, torch.empty(1))  # the layer is chosen when the first kernel runs
    torch.set_num_threads(threads)  # numba sets the number itself when it begins
    return str(numba.threading_layer()) != "workqueue"


@kernel
def _nothing(values: Any) -> None:
    for i in numba.prange(len(values)):
        values[i] = 0


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = tensor.detach().view(STORED[tensor.dtype]).numpy()
    return array


@operation
def wide(_: Any, stored: Any) -> Any:
    """A stored value as float32."""
    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if stored != types.uint16:
            return values[0]
        return builder.bitcast(builder.shl(builder.zext(values[0], WORD), WORD(16)), ir.FloatType())
    return types.float32(stored), build


@operation
def narrow(_: Any, x: Any, like: Any) -> Any:
    """A float32 as it is stored in the array `like`; to bfloat16 by rounding to the nearest, ties to even."""
    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if like.dtype != types.uint16:
            return values[0]
        bits = builder.bitcast(values[0], WORD)
        odd = builder.and_(builder.lshr(bits, WORD(16)), WORD(1))
        nearest = builder.lshr(builder.add(bits, builder.add(odd, WORD(0x7FFF))), WORD(16))
        is_number = builder.fcmp_ordered("==", values[0], values[0])
        return builder.trunc(builder.select(is_number, nearest, WORD(0x7FC0)), ir.IntType(16))
    return like.dtype(types.float32, like), build


@operation
def power_of_two(_: Any, exponent: Any) -> Any:
    """2 to an int32 from -126 to 127, as float32."""
    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(builder.shl(builder.add(values[0], WORD(127)), WORD(23)), ir.FloatType())
    return types.float32(types.int32), build


@operation
def in_order(_: Any, x: Any) -> Any:
    """float32 -> the int32 of the same rank, NaN above infinity; `from_order` is the way back."""
    return types.int32(types.float32), lambda context, builder, signature, values: _mirrored(
        builder, builder.bitcast(values[0], WORD))


@operation
def from_order(_: Any, rank: Any) -> Any:
    return types.float32(types.int32), lambda context, builder, signature, values: builder.bitcast(
        _mirrored(builder, values[0]), ir.FloatType())


def _mirrored(builder: Any, word: Any) -> Any:
    """Of a word with its highest bit set, the others turned over."""
    return builder.xor(word, builder.lshr(builder.ashr(word, WORD(31)), WORD(1)))


@operation
def transpose_square(_: Any, values: Any, row: Any, column: Any, columns: Any) -> Any:
    """columns[column + i, row + t] = values[row + t, column + i] for t and i from 0 to SQUARE - 1, in wide registers.

    Blocks on either side of the diagonal change places, of 1 entry first, then of 2, 4 and 8. For contiguous arrays: a kernel
    that is given another one does not compile.
    """
    if values.layout != "C" or columns.layout != "C":
        return None
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        read, t, i, write = arguments
        lines = _line_pointers(context, builder, signature.args[0], read, t, i)
        vectors = [builder.load(line, align=1) for line in lines]
        for size in (1, 2, 4, 8):
            for one in (each for each in range(SQUARE) if not each & size):
                a, b = vectors[one], vectors[one + size]
                upper = [lane if not lane & size else SQUARE + lane - size for lane in range(SQUARE)]
                lower = [lane + size if not lane & size else SQUARE + lane for lane in range(SQUARE)]
                vectors[one], vectors[one + size] = (
                    builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(WORD, SQUARE), mask)) for mask in (upper, lower))
        for line, vector in zip(_line_pointers(context, builder, signature.args[3], write, i, t), vectors, strict=True):
            builder.store(vector, line, align=1)
        return context.get_dummy_value()
    return types.void(values, types.intp, types.intp, columns), build


def _line_pointers(context: Any, builder: Any, kind: Any, array: Any, row: Any, column: Any) -> list[Any]:
    """To SQUARE entries of each of SQUARE rows of a contiguous array, from (row, column) on."""
    found = context.make_array(kind)(context, builder, array)
    width = cgutils.unpack_tuple(builder, found.shape)[1]
    first = builder.add(builder.mul(row, width), column)
    vector = ir.VectorType(context.get_data_type(kind.dtype), SQUARE).as_pointer()
    return [builder.bitcast(builder.gep(found.data, [builder.add(first, builder.mul(width, width.type(line)))]), vector)
            for line in range(SQUARE)]


@inlined
def highest_of(values: Any) -> Any:
    """The largest of stored values as float32; NaN where there is one. Compared as integers: that goes in wide registers."""
    highest = np.int32(-2147483647 - 1)
    for i in range(len(values)):
        highest = max(highest, in_order(wide(values[i])))
    return from_order(highest)


@inlined
def exp(x: Any) -> Any:
    """Of a float32 to 3e-7 of its value, in the processor's wide registers; x is cut to -87 .. 88, a NaN with it."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    whole = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
    rest = x - whole * np.float32(0.6931471805599453)  # -0.35 .. 0.35
    series = np.float32(1.0 / 720)
    series = series * rest + np.float32(1.0 / 120)
    series = series * rest + np.float32(1.0 / 24)
    series = series * rest + np.float32(1.0 / 6)
    series = series * rest + np.float32(0.5)
    series = series * rest + np.float32(1.0)
    series = series * rest + np.float32(1.0)
    return series * power_of_two(np.int32(whole))
