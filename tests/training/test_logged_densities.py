"""The densities of latents that a run logs, against a literal count."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saelab.report.training_figures import CURVE_KINDS
from saelab.sparse import SparseCodes
from saelab.training.loop import DENSITY_QUANTILES, density_quantiles


def test_density_quantiles_count_positive_codes_only():
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(40, 23, generator=generator)
    dense *= torch.rand(40, 23, generator=generator) < torch.linspace(0, 0.9, 23)
    codes = SparseCodes.from_mask(dense, torch.ones_like(dense, dtype=torch.bool))
    density = (dense.numpy() > 0).mean(axis=0)
    found = density_quantiles(codes)
    for name, level in DENSITY_QUANTILES.items():
        assert found[name] == pytest.approx(np.quantile(density, level), rel=1e-12)
    assert set(found) <= set(CURVE_KINDS)
