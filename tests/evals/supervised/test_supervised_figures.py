"""The figures of the suite, the toys and the circuit: words with the numbers, tables, panels."""

from __future__ import annotations

import pytest

from saelab.errors import ArtifactError
from saelab.evals.supervised.command import show
from saelab.report import figures_of
from saelab.report.supervised_parts import panels
from saelab.report.supervised_toy_figures import TOY_FIGURES


def test_every_figure_of_a_run_can_be_drawn_and_read(judged):
    figures = {figure.name: figure for figure in figures_of(judged[0])}
    assert list(figures) == [
        "approximation",
        "edit_accuracy",
        "tradeoff",
        "tradeoff_normalised",
        "occlusion",
        "f1_histogram",
        "f1_sweep",
    ]
    for figure in figures.values():
        assert figure.caption and figure.alt and figure.data
        lengths = {len(column) for column in figure.data.values()}
        assert len(lengths) == 1 and lengths.pop() > 0
    assert "identity 1.00 at resid_post.0@end" in figures["approximation"].alt
    assert "identity: 10 of 10 at 0.8 or more" in figures["f1_histogram"].alt
    assert "always, b: 0.00" in figures["occlusion"].alt
    table = figures["edit_accuracy"].data
    found = dict(
        zip(zip(table["contender"], table["edit"], strict=True), table["accuracy"], strict=True)
    )
    assert found["no intervention", "a at resid_post.0@end"] == 0
    assert found["supervised mse", "a at resid_post.0@end"] == 1


def test_the_command_shows_a_table_per_cross_section(judged, capsys):
    show(judged[0], judged[1] / "supervised.html")
    shown = capsys.readouterr().out
    assert "resid_post.0@end" in shown and "identity" in shown and "supervised.html" in shown


def test_data_that_was_edited_is_refused(judged):
    result = judged[0]
    broken = {**result.figure_data, "tradeoff": {"panels": [{}]}}
    changed = type(result)(**{**vars(result), "figure_data": broken})
    with pytest.raises(ArtifactError, match="figure 'tradeoff' of the supervised result"):
        figures_of(changed)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 12])
def test_panels_do_not_overlap(n):
    plot, axes = panels([f"panel {i}" for i in range(n)], "x", "y")
    layout = plot.to_plotly_json()["layout"]
    boxes = [
        (*layout[f"xaxis{x[1:]}"]["domain"], *layout[f"yaxis{y[1:]}"]["domain"]) for x, y in axes
    ]
    assert len(boxes) == n
    for place, (left, right, low, high) in enumerate(boxes):
        assert 0 <= left < right <= 1 and 0 <= low < high <= 1
        for other_left, other_right, other_low, other_high in boxes[:place]:
            apart = left >= other_right or right <= other_left
            assert apart or low >= other_high or high <= other_low


def test_toys():
    toys = {
        "splitting_toy": {"penalty": [1, 3], "ideal": [100.7, 102.9], "random": [81.5, 95.9]},
        "occlusion_toy": {
            "ratio": [1.5, 1.5],
            "l1": [0.2, 0.2],
            "threshold": ["0.5", "0.5"],
            "set": ["long", "short"],
            "share": [0.97, 0.68],
            "l0": [4.0, 4.0],
        },
    }
    alts = [draw(toys[name]).alt for name, draw in TOY_FIGURES.items()]
    assert "λ 1: 100.70 against 81.50" in alts[0]
    assert "short directions, F1 > 0.5 at 1.5, L1 0.2: 0.68" in alts[1]
