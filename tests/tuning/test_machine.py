"""How many cores a study may use."""

import os

from finemesh.tuning.machine import usable_cores


def test_a_limit_that_the_user_set_is_kept(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    for wanted, expected in (("", 8), ("2", 2), ("64", 8), ("0", 8), ("4,2", 8)):
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
        assert usable_cores() == expected
