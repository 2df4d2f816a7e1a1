"""Studies on clusters of unequal nodes: several raylets on this machine, each with a number of CPUs of its own. Slow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# Beside SCIENCE: what says where it is run.
PLACED = """
from tune.ray_session import prepare_ray_environment

prepare_ray_environment()
import ray, torch
from dataclasses import replace
from tune.placing import near_gpus
from tune.stage_graph import Stage
from tune.training_jobs import fit_with_ray_train
from tune.trial import shared_stage

def write_node(path):
    path.write_text(ray.get_runtime_context().get_node_id())

def refuse(context):
    raise InputError("weights.pt: not found")

def placed_prepare(context):
    \"\"\"A shared stage that says where it is built, and an error that comes from there as itself.\"\"\"
    built = near_gpus(shared_stage, context, Stage("pool", {}, lambda building: write_node(building.folder / "node")))
    (context.folder / "pool").write_text((built.path / "node").read_text())
    try:
        near_gpus(refuse, context)
    except InputError as error:
        (context.folder / "refused").write_text(f"{type(error).__name__} {error}")
    return prepare(context)

def placed_finish(context, selected):
    write_node(context.folder / "finished")
    return finish(context, selected)

def meet(*, shard, progress):
    \"\"\"Stands for a fit: it ends once all of its workers are there. Their number.\"\"\"
    seen = torch.ones(1)
    torch.distributed.all_reduce(seen)
    return int(seen)

def placed_trial(context, configuration, params, number, vae_only):
    \"\"\"A trial that says on which node it is, and goes on only once as many run as are to run at a time; then it fits.\"\"\"
    folder, search = context.trial_folder(number), context.config.search
    write_node(folder / "node")
    while len(list(context.folder.glob("trials/*/node"))) < search.concurrent_trials:
        time.sleep(0.5)
    if context.workers > 1:
        met = fit_with_ray_train(meet, {}, workers=context.workers, folder=folder, run_name=f"fit of trial {number}",
                                 threads_per_worker=search.threads_per_trial)
        (folder / "workers").write_text(str(met))
    return run_trial(context, configuration, params, number, vae_only)

placed = replace(hooks, prepare=placed_prepare, run_trial=placed_trial, finish=placed_finish)
"""
REAL = """
import json, sys
from tune.ray_session import prepare_ray_environment
from tune.run import default_hooks

prepare_ray_environment()
placed = default_hooks()
"""
# In a process of its own, which starts the nodes, runs a study of `placed` on them and stops them.
ON_NODES = """
import ray, time
from ray.cluster_utils import Cluster
from tune.run import main

def add_node(cluster, attempts=5, **resources):
    \"\"\"Ray gives its own processes 15 s, which a busy machine may exceed.\"\"\"
    for attempt in range(attempts):
        try:
            return cluster.add_node(include_dashboard=False, **resources)
        except Exception:
            if attempt + 1 == attempts:
                raise
            time.sleep(5)

nodes, *arguments = sys.argv[1:]
cluster = Cluster()
try:
    added = [add_node(cluster, **resources) for resources in json.loads(nodes)]
    cluster.wait_for_nodes(timeout=300)
    code = main([*arguments, "--address", cluster.address], placed)
    print("nodes", json.dumps([node.node_id for node in added]))
finally:
    ray.shutdown()
    cluster.shutdown()
sys.exit(code)
"""


def study(storage: Path, hooks: str, nodes: Sequence[Mapping[str, int]], *settings: str) -> tuple[dict, list[str]]:
    """The summary of a finished study on such nodes, and the names of these, the head's first. hooks: defines `placed`."""
    script = storage / "cluster.py"
    script.write_text(hooks + ON_NODES)
    options = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, str(script), json.dumps(nodes), "--storage", str(storage), "--study", "c", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        output, errors = process.communicate(timeout=1700)
    finally:
        process.terminate()  # it stops its nodes as it ends
        process.wait(timeout=90)
    (storage / "output.txt").write_text(output)
    assert process.returncode == 0, (output, errors)
    names = next(line for line in output.splitlines() if line.startswith("nodes "))
    return json.loads((storage / "c" / "summary.json").read_text()), json.loads(names.removeprefix("nodes "))


@pytest.fixture
def placed(driver_script: Path) -> str:
    """SCIENCE and PLACED."""
    return driver_script.read_text().partition("\nfrom tune.run")[0] + PLACED


UNEQUAL = [{"num_cpus": 1}, {"num_cpus": 2}, {"num_cpus": 1}]


def written(storage: Path, name: str) -> list[str]:
    return [path.read_text() for path in sorted(storage.glob(f"c/trials/*/{name}"))]


def test_trials_run_at_once_on_every_one_of_unequal_nodes(storage: Path, placed: str) -> None:
    summary, nodes = study(
        storage, placed, UNEQUAL, "search.trials=6", "search.concurrent_trials=4", "search.threads_per_trial=2"
    )
    assert [trial["number"] for trial in summary["trials"]] == list(range(6))
    assert all(trial["state"] in ("COMPLETE", "PRUNED") for trial in summary["trials"])
    assert len(nodes) == 3
    assert set(written(storage, "node")) == set(nodes)
    assert not written(storage, "workers")
    for here in ("pool", "finished"):
        assert (storage / "c" / here).read_text() == nodes[0]


def test_fits_that_need_more_workers_than_are_free_wait_for_each_other_and_end(storage: Path, placed: str) -> None:
    """Three trials at once, each with a fit of two workers, have four CPUs on three nodes."""
    settings = ("search.trials=4", "search.concurrent_trials=3", "search.fit_workers=2")
    summary, nodes = study(storage, placed, UNEQUAL, *settings)
    assert all(trial["state"] in ("COMPLETE", "PRUNED") for trial in summary["trials"])
    assert written(storage, "workers") == ["2"] * 4
    assert set(written(storage, "node")) <= set(nodes)


def test_where_only_other_nodes_have_gpus_trials_and_the_driver_s_own_part_run_there(storage: Path, placed: str) -> None:
    """The GPU is Ray's word for it only: nothing here computes on it."""
    nodes = [{"num_cpus": 1}, {"num_cpus": 2, "num_gpus": 1}, {"num_cpus": 1}]
    _, names = study(storage, placed, nodes, "search.trials=2", "search.concurrent_trials=2")
    assert written(storage, "node") == [names[1]] * 2
    for there in ("pool", "finished"):
        assert (storage / "c" / there).read_text() == names[1]
    assert (storage / "c" / "refused").read_text() == "InputError weights.pt: not found"
    assert "2 of 3 nodes have no GPU and run no trials" in (storage / "output.txt").read_text()


SMALL = [
    *("data.stimulus_count=192", "vae.epochs=4", "vae.batch_size=32", "denoiser.training_steps=4", "denoiser.batch_size=8"),
    *("denoiser.base_width=8", "denoiser.memory_copies=2", "denoiser.diffusion_steps=20", "critic.infonce_batch=16"),
    *("critic.images_seen=160", "critic.minimum_steps=10", "critic.evaluation_candidates=32", "synthesis.trial_pairs=4"),
    *("synthesis.final_pairs=4", "synthesis.sweep_scales=[1.0]", "synthesis.shifts=[1.0]", "search.r2_margin=9"),
    *("search.infonce_batch=[16]", "search.final_seeds=1"),
]


def test_two_real_trials_at_once_whose_fits_take_both_cores_end(storage: Path) -> None:
    """Every fit, of both trials and of what they share, by two workers through Ray Train on a machine of two cores."""
    settings = ("search.trials=2", "search.concurrent_trials=2", "search.fit_workers=2")
    summary, _ = study(storage, REAL, [{"num_cpus": 2}], *SMALL, *settings)
    assert [trial["state"] for trial in summary["trials"]] == ["COMPLETE"] * 2
    kinds = {stage["kind"] for stage in summary["stages"]}
    assert kinds >= {"denoiser", "vae", "standard_vae", "critic", "synthesis", "evaluation", "gallery"}
    assert Path(summary["export"]).is_dir()
    output = (storage / "output.txt").read_text()
    assert "fits run in its own process" not in output
