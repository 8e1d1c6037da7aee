"""The heat maps of a circuit search show the effects they were given."""

from __future__ import annotations

from saelab.evals.supervised.circuit import (
    Circuit,
    RoleEffects,
    circuit_charts,
    write_circuit_page,
)


def test_a_heat_map_shows_every_head_and_marks_those_of_the_role(tmp_path):
    effects = [[0.0, 0.1], [-0.4, 0.02], [0.3, 0.0]]
    role = RoleEffects(
        name="reader",
        edit=("io",),
        position="end",
        n_prompts=8,
        whole=0.9,
        effects=effects,
        heads=((1, 0), (2, 0)),
    )
    circuit = Circuit("ioi", "m", 2.0, (role,))
    (chart,) = circuit_charts(circuit)
    heat, outline = chart.series
    assert heat.z is not None
    assert [[heat.z[head][layer] for head in range(2)] for layer in range(3)] == effects
    assert list(zip(outline.x, outline.y, strict=True)) == [(1, 0), (2, 0)]
    assert "1.0 (-0.400), 2.0 (0.300)" in chart.alternative_text()
    table = chart.table()
    rows = zip(table["block"], table["head"], table["effect"], strict=True)
    assert (1, 0, -0.4) in set(rows)
    assert "8 prompts" in chart.caption
    page = write_circuit_page(tmp_path / "circuit.html", circuit).read_text()
    assert "reader: heads at end" in page and "1.0, 2.0" in page
