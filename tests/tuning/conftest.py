"""Tiny models and tokenizers, built here: two layers, 32 wide, no download."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
