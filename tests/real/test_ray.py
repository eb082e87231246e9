"""`executor: ray` on a real cluster of two nodes of one processor each, one of which is killed."""

import json
import os
import runpy
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from finemesh.cli import main
from finemesh.errors import InputError
from finemesh.run import RunFolder
from finemesh.search.executors import EXECUTORS
from finemesh.search.executors.ray import on_a_node
from finemesh.tuning.precision import measure_precision
from tests.real.conftest import ROOT, needs_package
from tests.real.test_postgres import config, places, points

pytestmark = [pytest.mark.real, needs_package("ray"), pytest.mark.filterwarnings("default")]
__all__ = ["places"]
QUICK_TO_NOTICE = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 5000,
                   "health_check_failure_threshold": 4}
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def fake() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "tests/search/fake_search.py"), run_name="fake_search"))


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = str(ROOT)  # of the nodes
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"_system_config": QUICK_TO_NOTICE})
    cluster.second = cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


def on_ray(folder: Path, script: dict, cluster, **options):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "script.json").write_text(json.dumps(script))
    return EXECUTORS["ray"]([sys.executable, str(ROOT / "tests/search/fake_worker.py"), str(folder / "script.json")], 2,
                            logs=folder / "logs", environment={"PYTHONPATH": str(ROOT)}, address=cluster.address, **options)


def steps(folder: Path, number: int) -> list[int]:
    return [int(step) for step in (folder / f"trials/{number:04d}/steps.log").read_text().split()]


def test_what_a_node_says(cluster):
    precision = on_a_node(measure_precision, cluster.address, cpus=1, gpus=0, memory_mb=None)
    assert precision.fp32_gflops > 0
    with pytest.raises(InputError, match="no node of the cluster has this much"):
        on_a_node(measure_precision, cluster.address, cpus=3, gpus=0, memory_mb=None)


def test_trials_run_at_the_same_time_on_both_nodes_and_points_are_those_of_this_machine(fake, tmp_path, cluster):
    script = {"until": {"0": 1}, "die": {"2": 1, "3": 9}, "error": [4]}  # trial 0 waits until trial 1 has begun
    here = fake.search(tmp_path / "here", 6, workers=2, script=script)
    watcher = fake.Watcher()
    there = fake.search(tmp_path / "there", 6, workers=2, observer=watcher,
                        workplace=on_ray(tmp_path / "there/fake", script, cluster))
    assert fake.points(there) == fake.points(here)
    assert [outcome.state for outcome in there] == ["complete"] * 3 + ["failed"] * 2 + ["complete"]
    assert "killed by SIGKILL" in str(there[3].error)


def test_the_command_with_a_real_worker(places, tmp_path, cluster, capsys):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    file = Path(config(places, tmp_path / "there", "sqlite"))
    file.write_text(file.read_text() + f"workers: 2\nexecutor: ray\nray: {{address: '{cluster.address}', cpus: 1}}\n")
    assert main(["search", str(file)]) == 0, capsys.readouterr().err
    assert RunFolder(tmp_path / "there/run").finish() is not None
    assert main(["search", config(places, tmp_path / "here", "sqlite"), "--workers", "2"]) == 0
    assert points(tmp_path / "there") == points(tmp_path / "here")


@pytest.mark.parametrize(("options", "said"), [
    ({"gpus": 1}, "ray.cpus 1, ray.gpus 1: no node of the cluster has this much for a trial. Nodes have: cpus 1, gpus 0"),
    ({"cpus": 3, "memory_mb": 10}, "ray.cpus 3, ray.memory_mb 10: no node"),
])
def test_more_than_any_node_has(tmp_path, cluster, options, said):
    with pytest.raises(InputError, match=said):
        on_ray(tmp_path, {}, cluster, **options)


def test_no_cluster(places, tmp_path, capsys):
    file = Path(config(places, tmp_path, "sqlite"))
    file.write_text(file.read_text() + "executor: ray\nray: {address: 127.0.0.1:1}\n")
    assert main(["search", str(file)]) == 2
    assert "ray.address: no cluster answers at 127.0.0.1:1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_lost_node_costs_only_its_trials_and_they_go_on_elsewhere(fake, tmp_path, cluster):  # the last test: one is left
    whole = fake.search(tmp_path / "whole", 4, workers=2, steps=40)

    class Saboteur(fake.Watcher):
        def progress(self, number: int, line) -> None:
            super().progress(number, line)
            if {0, 1} <= {number for number, line in self.lines if line["step"] >= 10} and cluster.second:
                cluster.remove_node(cluster.second, allow_graceful=False)
                cluster.second = None

    watcher = Saboteur()
    outcomes = fake.search(tmp_path / "run", 4, workers=2, steps=40, observer=watcher,
                           workplace=on_ray(tmp_path / "run/fake", {"seconds": 0.05}, cluster))
    assert fake.points(outcomes) == fake.points(whole)
    assert len(watcher.messages) == 1
    assert "its node or its actor was lost" in watcher.messages[0]
    logs = [steps(tmp_path / "run", number) for number in range(4)]
    resumed = [[step for before, step in pairwise(log) if step != before + 1] for log in logs]
    assert sum(map(bool, resumed)) <= 1  # none, where the trial had ended before the loss was noticed
    assert all(step >= 9 for log in resumed for step in log)  # from its checkpoint
    assert all(sorted(set(log)) == list(range(40)) for log in logs)
