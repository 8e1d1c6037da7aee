"""Two processes with half of each batch count, select and fit what one does with all of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed

from saelab.sparse.world import ALONE, World, current_world
from saelab.training.config import DictionarySpec, OptimizerConfig
from saelab.training.interface import TrainingBatch
from saelab.training.learner import Learner
from saelab.training.methods import METHODS, MethodOptions
from saelab.training.options import AuxiliaryOptions
from saelab.training.schedule import Schedule

ROWS, D_IN, D_SAE, N_STEPS = 64, 12, 48, 18


def options_for(name):
    auxiliary = AuxiliaryOptions(
        kind="zipf" if name == "mutual_choice" else "auxk",
        k_aux=4,
        dead_after_tokens=200,
        density_horizon_tokens=500,
    )
    methods = MethodOptions()
    object.__setattr__(getattr(methods, name), "auxiliary", auxiliary)
    if name.endswith("bias_adaptation"):
        # A start at the targets puts one row exactly on each threshold, where rounding decides.
        object.__setattr__(getattr(methods, name), "start", "zero")
    if name == "feature_choice":
        object.__setattr__(methods.feature_choice, "mutual_choice_fraction", 0.5)
    return methods


def trained(name):
    """All that a method has counted, selected and fitted, by name, in float64."""
    world = current_world()
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(30, D_IN, generator=generator, dtype=torch.float64)
    rows_held = ROWS // world.size
    share = slice(world.rank * rows_held, (world.rank + 1) * rows_held)
    learner = Learner.build(
        DictionarySpec(name, D_SAE, 4, 0),
        d_in=D_IN,
        schedule=Schedule.of(N_STEPS),
        batch_rows=ROWS,
        options=options_for(name),
        optimizer=OptimizerConfig(clip_norm=0.1),
        product_dtype=None,
        device=torch.device("cpu"),
    )
    learner.method.double()
    seen = {}
    for step in range(N_STEPS):
        active = torch.rand(ROWS, 30, generator=generator, dtype=torch.float64)
        x = ((active < 0.1) * active * 10 @ features)[share]
        batch = TrainingBatch(x, x, x.roll(1, 1), step=step)
        codes = learner.step(batch).codes
        seen[f"codes.{step:02}"] = codes.to_dense().detach()
    if learner.method.needs_calibration:
        learner.method.calibrate(x)
    if name.endswith("bias_adaptation"):
        learner.method.biases.start_at_targets(x, learner.method.weights.directions, 1.0)
    return seen | {name: tensor.clone() for name, tensor in learner.state().items()}


def worker(store, rank, folder):
    """One process of two, and what the primitives give in it."""
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    world = current_world()
    assert world == World(rank, 2)
    ragged = world.gather(torch.arange(3 * rank).view(-1, 1))
    assert [part.flatten().tolist() for part in ragged] == [[], [0, 1, 2]]
    mine = torch.tensor([float(rank), 2.0])
    assert world.sum(mine).tolist() == [1, 4] and world.max(mine).tolist() == [1, 2]
    assert world.mean(mine).tolist() == [0.5, 2] and mine.tolist() == [rank, 2]
    assert world.any(mine > 1).tolist() == [False, True]
    for name in METHODS:
        save_file(
            {key: tensor.contiguous() for key, tensor in trained(name).items()},
            f"{folder}/{name}-{rank}.safetensors",
        )
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    command = [sys.executable, __file__, str(folder / "store")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in processes:
            process.kill()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_are_one(name, two_processes):
    whole = trained(name)
    first, second = (load_file(two_processes / f"{name}-{rank}.safetensors") for rank in range(2))
    assert set(first) == set(whole)
    assert int((whole["codes.00"] != 0).sum()) > 0
    for key, expected in whole.items():
        if key.startswith("codes."):
            both = torch.cat([first[key], second[key]])
            assert torch.equal(both != 0, expected != 0), key
            torch.testing.assert_close(both, expected, rtol=1e-6, atol=1e-9)
            continue
        for found in (first[key], second[key]):
            if expected.is_floating_point():
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9, msg=key)
            else:
                assert torch.equal(found, expected), key


def test_alone_the_world_gives_back_what_it_was_given():
    assert current_world() is ALONE
    tensor = torch.arange(3.0)
    parameter = torch.nn.Parameter(tensor)
    ALONE.average_gradients([parameter])
    assert parameter.grad is None
    assert all(f(tensor) is tensor for f in (ALONE.sum, ALONE.max, ALONE.mean))
    mask = tensor > 1
    assert ALONE.any(mask) is mask and ALONE.gather(tensor)[0] is tensor


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
