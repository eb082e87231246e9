"""What kernels are written with agrees with torch, numbers that are none included."""

import math
from typing import Any

import pytest
import torch
from numba import prange

from finemesh.tuning.kernels.compiled import exp, highest_of, kernel, narrow, run, wide

ODD = [0.0, -0.0, 1.0, -1.0, 1.00390625, 1.01171875, 3.3e38, -3.4e38, 1e-40, math.inf, -math.inf, math.nan]


@kernel
def copied(values: Any, result: Any) -> None:
    for i in prange(len(values)):
        result[i] = narrow(wide(values[i]), result)


@kernel
def exponentials(values: Any, result: Any) -> None:
    for i in prange(len(values)):
        result[i] = exp(values[i])


@kernel
def highest(values: Any, result: Any) -> None:
    for i in prange(len(values)):
        result[i] = highest_of(values[i])


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_values_are_rounded_as_torch_rounds_them(kind: torch.dtype, stored: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.cat([torch.tensor(ODD), torch.randn(1000) * 10 ** torch.randint(-20, 20, (1000,))]).to(kind)
    result = torch.empty(len(values), dtype=stored)
    run(copied, values, result)
    torch.testing.assert_close(result, values.to(stored), rtol=0, atol=0, equal_nan=True)


def test_exponentials() -> None:
    values = torch.linspace(-86, 87, 20_001)
    result = torch.empty_like(values)
    run(exponentials, values, result)
    assert ((result.double() - values.double().exp()) / values.double().exp()).abs().max() < 5e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_highest_of_a_row_and_a_nan_that_hides_nowhere(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.randn(5, 33).to(dtype)
    values[1] = -values[1].abs() - 1
    values[2, 7], values[3, 0], values[4] = math.inf, math.nan, -math.inf
    result = torch.empty(5)
    run(highest, values, result)
    torch.testing.assert_close(result, values.amax(1).float(), equal_nan=True)
