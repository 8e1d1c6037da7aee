"""What other suites left beside dictionaries is drawn against L0."""

from __future__ import annotations

import pytest

from saelab.evals.compare.suite import CompareConfig, run_compare
from saelab.evals.controls import beside_controls
from saelab.formats.evaluation_result import (
    EvaluationResult,
    MeasuredMetric,
    write_evaluation_result,
)


def probing_result(content_hash, **numbers):
    return EvaluationResult(
        suite="probing",
        dictionary_name="any",
        dictionary_hash=content_hash,
        settings={},
        made_from={},
        metrics=tuple(
            MeasuredMetric(name=name, value=value, unit="1", definition="AUC.", better="higher")
            for name, value in numbers.items()
        ),
        headline=("auc",),
    )


def test_headline_numbers_are_drawn_with_intervals_and_controls(plant, tmp_path):
    run = plant.run(methods=("topk",), seeds=(0,))
    control = probing_result("of a control", auc=0.5)
    for index, (folder, content_hash) in enumerate(sorted(plant.hashes.items())):
        auc = 0.7 + index / 100
        # The third result is of a dictionary that has been trained again since.
        of = content_hash if index < 2 else "another"
        trained = probing_result(of, auc=auc, auc_low=auc - 0.1, auc_high=auc + 0.2)
        write_evaluation_result(
            folder / "evals" / "probing.json",
            beside_controls(trained, {"random": control}, {"auc": 1}),
        )
    [result] = run_compare([run], CompareConfig(out=tmp_path / "out", device="cpu"))
    [chart] = [chart for chart in result.charts if chart.section == "Other suites"]
    trained, controls = chart.series
    assert chart.title == "probing: auc (higher is better)"
    assert sorted(trained.y) == [0.7, 0.71]
    assert len(set(trained.x)) == 2
    for y, low, high in zip(trained.y, trained.low, trained.high, strict=True):
        assert (low, high) == (pytest.approx(y - 0.1), pytest.approx(y + 0.2))
    assert controls.y == [0.5, 0.5]
