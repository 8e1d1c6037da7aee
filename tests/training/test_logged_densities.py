"""The densities of latents that a run logs, against a literal count."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from saelab.errors import ActivationError
from saelab.report.training_figures import CURVE_KINDS
from saelab.sparse import SparseCodes
from saelab.stats.metrics import fvu
from saelab.training.curves import write_curves
from saelab.training.interface import StepOutput, TrainingBatch
from saelab.training.loop import DENSITY_QUANTILES, density_quantiles, step_figures


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


def test_one_batch_of_equal_rows_leaves_fvu_undefined_and_the_run_alive(tmp_path):
    rows = torch.ones(4, 3)
    codes = SparseCodes.from_mask(torch.ones(4, 2), torch.ones(4, 2, dtype=torch.bool))
    output = StepOutput(losses={"mse": torch.tensor(0.5)}, reconstruction=rows, codes=codes)
    figures = step_figures(TrainingBatch(rows, rows, None, step=0), output)
    assert figures["fvu"] is None and figures["loss"] == 0.5 and figures["l0"] == 2
    later = figures | {"fvu": 0.25}
    with (tmp_path / "metrics.jsonl").open("w") as log:
        for step, line in enumerate([figures, later, figures]):
            log.write(json.dumps({"step": step, "dictionary": "a", "tokens": step, **line}) + "\n")
    page, _ = write_curves(tmp_path)
    assert "a from 0.25 to 0.25 at 1 tokens" in page.read_text()
    with pytest.raises(ActivationError, match="all equal, so FVU is undefined"):
        fvu(rows, rows)
