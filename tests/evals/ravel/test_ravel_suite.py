"""The suite "ravel": facts from files, and a model that knows none of them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from saelab.errors import ConfigError
from saelab.evals.ravel import facts as facts_module
from saelab.evals.ravel.facts import EntityFact, prompt_of, read_facts
from saelab.evals.ravel.suite import SUITE, RavelConfig, run_ravel
from saelab.evals.terminal import run_command
from saelab.formats.evaluation_result import read_evaluation_result

ROWS = [
    ("mill", "kind", "house", "the {entity} is a"),
    ("river", "kind", "water", "the {entity} is a"),
]


def test_the_embedded_facts_are_small_and_whole():
    facts = read_facts(None)
    cities = {fact.entity for fact in facts}
    assert 60 <= len(cities) <= 100 and len(facts) == 3 * len(cities)
    assert all(fact.value and fact.prompt.count("{entity}") == 1 for fact in facts)
    path = facts_module.Path(facts_module.__file__).with_name("cities.csv")
    assert path.stat().st_size < 15_000


def test_facts_are_read_from_csv_and_jsonl(tmp_path):
    table = tmp_path / "facts.csv"
    table.write_text("entity,attribute,value,prompt\n" + "\n".join(map(",".join, ROWS)))
    lines = tmp_path / "facts.jsonl"
    names = ("entity", "attribute", "value", "prompt")
    lines.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in ROWS))
    expected = [EntityFact(*row) for row in ROWS]
    assert read_facts(table) == read_facts(lines) == expected
    table.write_text("entity,attribute,value,prompt\na,b,c,no mark\n")
    with pytest.raises(ConfigError, match=r"the prompt 'no mark' of 'a': each row needs a value"):
        read_facts(table)
    table.write_text("entity,value\na,b\n")
    with pytest.raises(ConfigError, match="with the columns entity, attribute, value, prompt"):
        read_facts(table)


def test_a_prompt_is_read_at_the_last_token_of_its_entity(tiny_model):
    prompt = prompt_of(tiny_model, EntityFact("old mill", "kind", "house", "the {entity} is"))
    text = tiny_model.text_of(prompt.tokens[1 : prompt.position + 1])
    assert text == "the old mill"
    assert tiny_model.text_of(prompt.tokens[1:]) == "the old mill is"
    assert prompt.answer == tiny_model.tokenize([" house"])[0][0]
    assert prompt_of(tiny_model, EntityFact("mill", "kind", "house", "the {entity}")) is None


def test_a_model_that_knows_too_little_is_told_with_counts(
    save_trained, topk_dictionary, tmp_path, capsys
):
    folder = save_trained(topk_dictionary(), "sae")
    table = tmp_path / "facts.csv"
    table.write_text("entity,attribute,value,prompt\n" + "\n".join(map(",".join, ROWS)))
    config = RavelConfig(facts=table, device="cpu", controls=())
    [result] = run_ravel([folder], config)
    assert result.value("disentanglement") is None
    assert result.value("n_facts") == 2
    assert "kind 0 of 2; 0 entities" in result.notes[0] and "scores are null" in result.notes[0]
    assert read_evaluation_result(folder / "evals" / "ravel.json") == result
    assert all("{" not in metric.definition for metric in result.metrics)
    run_command(SUITE, [str(folder), "--facts", str(table), "--device", "cpu", "--overwrite"])
    assert "ravel.html" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="cannot be read"):
        run_ravel([folder], replace(config, facts=tmp_path / "none.csv", overwrite=True))
