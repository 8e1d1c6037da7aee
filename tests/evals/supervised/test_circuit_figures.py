"""The heat maps of a circuit search show the effects they were given."""

from __future__ import annotations

from saelab.report.circuit_figures import circuit_heat_maps


def test_a_heat_map_shows_every_head_and_outlines_those_of_the_role():
    effects = [[0.0, 0.1], [-0.4, 0.02], [0.3, 0.0]]
    role = {
        "name": "reader",
        "edit": ["io"],
        "position": "end",
        "n_prompts": 8,
        "whole": 0.9,
        "effects": effects,
        "heads": [[1, 0], [2, 0]],
    }
    (figure,) = circuit_heat_maps({"roles": [role]})
    heat, outline = figure.plot.data
    assert [[heat.z[head][layer] for head in range(2)] for layer in range(3)] == effects
    assert list(zip(outline.x, outline.y, strict=True)) == [(1, 0), (2, 0)]
    assert "1.0 (-0.400), 2.0 (0.300)" in figure.alt
    assert figure.data["effect"][:2] == [-0.4, 0.3]
    assert "8 prompts" in figure.caption
