"""On a GPU: the steady step never waits for the device, and computes what the CPU computes."""

import pytest
import torch

from saelab.training.config import DictionarySpec, OptimizerConfig
from saelab.training.interface import TrainingBatch
from saelab.training.learner import Learner
from saelab.training.methods import METHODS, MethodOptions
from saelab.training.parts.auxiliary import REFRESH_STEPS
from saelab.training.schedule import Schedule

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def learner_on(name, device):
    return Learner.build(
        DictionarySpec(name, 4096, 32, 0),
        d_in=256,
        schedule=Schedule.of(40),
        batch_rows=1024,
        options=MethodOptions(),
        optimizer=OptimizerConfig(),
        product_dtype=None,
        device=torch.device(device),
    )


NEVER_WAIT = ("topk", "gradient_topk")
"""Methods whose selections have a size known beforehand; the others must ask the device for it."""


@needs_gpu
@pytest.mark.parametrize("name", NEVER_WAIT)
def test_the_steady_step_does_not_wait_for_the_gpu(name):
    learner = learner_on(name, "cuda")
    x = torch.randn(1024, 256, device="cuda")
    for step in range(2 * REFRESH_STEPS):
        learner.step(TrainingBatch(x, x, x, step=step))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(2 * REFRESH_STEPS + 1, 3 * REFRESH_STEPS - 1):
            learner.step(TrainingBatch(x, x, x, step=step))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("name", METHODS)
def test_gpu_and_cpu_agree(name):
    x = torch.randn(1024, 256)
    results = []
    for device in ("cpu", "cuda"):
        learner = learner_on(name, device)
        output = learner.method.losses(
            TrainingBatch(x.to(device), x.to(device), x.to(device), step=0)
        )
        torch.stack(list(output.losses.values())).sum().backward()
        results.append([p.grad.cpu() for p in learner.method.parameters()])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)
