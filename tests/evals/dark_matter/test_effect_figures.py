"""Figures of the effects of an error's parts: drawn from the data that results hold."""

import json

import pytest

from saelab.config import from_plain, to_plain
from saelab.evals.dark_matter.components import (
    ComponentFindings,
    ComponentScore,
    components_chart,
)
from saelab.evals.dark_matter.downstream import (
    CONDITIONS,
    PARTS,
    DownstreamFindings,
    downstream_charts,
)
from saelab.evals.dark_matter.linear_maps import (
    JOINT,
    OWN,
    LinearMapFindings,
    linear_maps_chart,
)
from saelab.evals.dark_matter.synthetic import (
    ABLATED,
    LEVELS,
    LINE_CELLS,
    SyntheticCell,
    SyntheticFindings,
    synthetic_charts,
)
from saelab.formats.chart import Chart
from saelab.report.draw import draw

SETTINGS = {"method": "topk", "d_sae": 64, "target_l0": 8, "n_tokens": 1000, "seed": 0}


def cell(dense, introduced, ablated=0.0):
    return SyntheticCell(
        dense=dense,
        introduced=introduced,
        ablated=ablated,
        fvu=0.1 + dense + introduced,
        fvu_nonlinear=0.05 + introduced,
    )


def charts():
    downstream = DownstreamFindings(
        loss={name: 30.0 + place for place, name in enumerate(CONDITIONS)},
        kl={name: 1.0 + place for place, name in enumerate(CONDITIONS)},
        original=30.0,
        squares={"error": 5.0, "linear": 2.0, "nonlinear": 3.0},
        norms={"error": 5.0, "linear": 3.0, "nonlinear": 4.0},
        norm_ratios=dict.fromkeys(PARTS, 6.0),
        n_contexts=1,
        n_positions=10,
        n_rows=9,
        n_rows_with_error=9,
    )
    maps = LinearMapFindings(
        r_squared={
            name: dict.fromkeys(("error", "linear", "nonlinear"), (0.4, None))
            for name in (OWN, "blocks.0.hook_resid_post", JOINT)
        },
        fvu_corrected=dict.fromkeys((OWN, "blocks.0.hook_resid_post", JOINT), 0.15),
        fvu=0.2,
        n_train_rows=600,
        n_test_rows=400,
    )
    synthetic = SyntheticFindings(
        grid=[cell(a, r) for a in LEVELS for r in LEVELS],
        lines=[cell(a, r, share) for a, r in LINE_CELLS for share in ABLATED],
        correlations={("dense", "linear"): 0.9, ("introduced", "linear"): None},
        deviation=1.0,
        n_train_rows=60,
        n_test_rows=40,
        n_never_active=3,
    )
    components = ComponentFindings(
        scores=[
            ComponentScore(
                name=f"d-{part}", component=part, settings=SETTINGS, fvu=fvu, l0=8.0, dead=0.1
            )
            for part, fvu in (("linear", 0.54), ("nonlinear", 0.59))
        ],
        variance_share={"error": 0.2, "linear": 0.08, "nonlinear": 0.12},
        n_rows=500,
    )
    drawn = [
        *downstream_charts(downstream),
        linear_maps_chart(maps),
        *synthetic_charts(synthetic),
        components_chart(components),
    ]
    return {chart.name: chart for chart in drawn}


NAMES = (
    "downstream_recovery",
    "downstream_losses",
    "linear_maps",
    "error_components",
    "synthetic_grid",
    "synthetic_ablation",
)


def test_there_is_a_chart_for_every_analysis():
    assert set(charts()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_drawn_from_the_data_as_a_file_holds_it(name):
    stored = json.loads(json.dumps(to_plain(charts()[name])))
    figure = draw(from_plain(Chart, stored, "chart"))
    assert figure.name == name and len(figure.plot.data) >= 2
    assert len({len(column) for column in figure.data.values()}) == 1
    for text in (figure.caption, figure.alt):
        assert "None" not in text and "nan" not in text
    units = [figure.plot.layout.xaxis.title.text, figure.plot.layout.yaxis.title.text]
    assert any(units)


def test_captions_and_alternatives_hold_the_numbers():
    figures = charts()
    assert "FVU" in figures["error_components"].caption
    assert "nonlinear error, topk, 64 latents, k 8, 1000 rows: 0.590" in (
        figures["error_components"].alternative_text()
    )
    assert "dense noise with the linear share 0.900" in figures["synthetic_grid"].caption
    assert "(0.2000 without)" in figures["linear_maps"].caption
    # One loss of `sae` above the original: adding the linear part costs one more.
    assert "loss taken back: linear -100 %" in figures["downstream_recovery"].summary
