"""The charts of the suite and the toys: words with the numbers, tables, a page, the terminal."""

from __future__ import annotations

from saelab.evals.supervised.suite import SUITE
from saelab.evals.supervised.toys import OcclusionToy, SplittingToy, toys_result
from saelab.evals.terminal import show
from saelab.formats.evaluation_result import read_evaluation_result
from saelab.report.draw import draw


def test_every_chart_of_a_run_is_stored_and_can_be_drawn_and_read(judged):
    result = read_evaluation_result(judged[2] / "supervised.json")
    assert result.charts == judged[1].charts
    charts = {chart.name: chart for chart in result.charts}
    assert list(charts) == [
        "sufficiency",
        "necessity",
        "edit_accuracy",
        "tradeoff_0",
        "tradeoff_1",
        "tradeoff_normalised",
        "occlusion",
        "f1_histogram_0",
        "f1_histogram_1",
        "f1_histogram_2",
        "f1_sweep_0",
    ]
    for chart in charts.values():
        figure = draw(chart)
        assert figure.caption and figure.alt and figure.data
        lengths = {len(column) for column in figure.data.values()}
        assert len(lengths) == 1 and lengths.pop() > 0
    assert "identity, resid_post.0@end: 1.00" in charts["sufficiency"].alternative_text()
    assert "identity: 10 of 10 at 0.8 or more" in charts["f1_histogram_0"].alternative_text()
    assert "always, b: 0.00" in charts["occlusion"].alternative_text()
    table = charts["edit_accuracy"].table()
    edits = table["edited attributes and cross-section"]
    found = dict(zip(zip(table["series"], edits, strict=True), table["edit accuracy"], strict=True))
    assert found["no intervention", "a at resid_post.0@end"] == 0
    assert found["supervised mse", "a at resid_post.0@end"] == 1


def test_the_command_shows_a_table_with_every_cross_section(judged, capsys):
    show(SUITE, [(judged[2] / "supervised.json", judged[1])])
    shown = capsys.readouterr().out
    assert "resid_post.0@end" in shown.replace("\n", "") and "supervised.html" in shown
    assert "identity" in shown


def test_every_score_is_stored_with_its_interval(judged):
    from pyarrow import parquet

    measured, result, out = judged
    rows = parquet.read_table(out / result.item_files["scores"]).to_pylist()
    assert rows == [score.to_json() for score in measured.data["scores"]]
    assert len(rows) == len(result.metrics)
    assert any(row["low"] is not None for row in rows)


def test_toys():
    splitting = [
        SplittingToy(penalty=penalty, ideal=ideal, random=random, ideal_scale=0.5, ideal_bias=1.5)
        for penalty, ideal, random in ((1.0, 100.7, 81.5), (3.0, 102.9, 95.9))
    ]
    toy = OcclusionToy(shares={("long", 0.5): 0.97, ("short", 0.5): 0.68}, l0=4.0)
    result = toys_result(splitting, {(1.5, 0.2): toy})
    alts = [draw(chart).alt for chart in result.charts]
    assert "λ 1: 100.70 against 81.50" in alts[0]
    assert "short directions, F1 > 0.5 at 1.5, L1 0.2: 0.68" in alts[1]
    assert result.value("occlusion/ratio1.5/l1_0.2/short/f1_0.5") == 0.68
