"""A planted cache is an ordinary cache, and says what it is; the command that writes it."""

import json
from dataclasses import replace

import pytest
import torch

from saelab.cache.cache_stream import CacheStream
from saelab.cache.reader import open_cache
from saelab.cli import main
from saelab.commands.info import describe
from saelab.config import to_plain
from saelab.dictionary import Dictionary, load_dictionary, save_dictionary
from saelab.errors import ArtifactError, ConfigError
from saelab.formats.manifest import write_manifest
from saelab.synthetic import cache
from saelab.synthetic.cache import write_planted_cache
from saelab.synthetic.config import PlantedConfig
from saelab.synthetic.generator import planted_rows
from saelab.synthetic.presets import PRESETS
from saelab.synthetic.truth import truth_of

SMALL = replace(PRESETS["smoke"], n_rows=1000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A planted cache, to be read only."""
    return write_planted_cache(tmp_path_factory.mktemp("planted"), SMALL)


def saved_on(origin, folder):
    dictionary = Dictionary(
        "relu",
        W_enc=torch.eye(24),
        W_dec=torch.eye(24),
        b_dec=torch.zeros(24),
        b_enc=torch.zeros(24),
    )
    inputs = planted_rows(SMALL, 16).rows
    save_dictionary(folder, dictionary, self_test_inputs=inputs, training={}, made_from=origin)
    return load_dictionary(folder)


def test_the_cache_holds_the_training_rows_and_their_statistics(folder):
    opened = open_cache(folder.parent)
    rows = planted_rows(SMALL, 1000).rows
    assert opened.folder == folder and folder.name == "planted"
    batch = next(opened.iterate(2000))
    assert torch.equal(batch.activations, rows)
    assert batch.sequence.tolist() == list(range(1000))
    assert not batch.position.any() and not batch.tokens.any()
    statistics = opened.statistics
    assert torch.allclose(statistics.mean, rows.double().mean(0).float(), atol=1e-7)
    squared = rows.double().square().sum(1).mean()
    assert statistics.mean_squared_norm == pytest.approx(float(squared))
    assert sum(opened.excluded.values()) == 0 and opened.norm_ceiling is None
    assert opened.model_name == "planted:smoke" and opened.hook_point == "planted"


def test_a_trainer_can_stream_it(folder):
    stream = CacheStream(open_cache(folder), batch_rows=300, seed=0)
    seen = torch.cat([stream.next_batch().activations for _ in range(10)])
    assert seen.shape == (3000, 24)
    once = seen[:1000].sort(dim=0).values
    assert torch.allclose(once, planted_rows(SMALL, 1000).rows.sort(dim=0).values)


def test_shards_are_cut_and_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD_ROWS", 8192)
    config = replace(SMALL, n_rows=10_000)
    opened = open_cache(write_planted_cache(tmp_path, config))
    assert [entry["rows"] for entry in opened.manifest["shards"]] == [8192, 1808]
    indices = torch.tensor([0, 8191, 8192, 9999])
    assert torch.equal(opened.rows(indices).activations, planted_rows(config, 10_000).rows[indices])


def test_equal_configs_make_equal_caches(folder, tmp_path):
    again = open_cache(write_planted_cache(tmp_path / "again", SMALL))
    assert again.content_hash == open_cache(folder).content_hash
    other = write_planted_cache(tmp_path / "other", replace(SMALL, seed=1))
    assert open_cache(other).content_hash != again.content_hash


def test_nothing_is_replaced_unasked_and_nothing_foreign_ever(tmp_path):
    folder = write_planted_cache(tmp_path, SMALL)
    with pytest.raises(ConfigError, match="already exists: give --overwrite to replace it"):
        write_planted_cache(tmp_path, SMALL)
    write_planted_cache(tmp_path, replace(SMALL, n_rows=500), overwrite=True)
    assert open_cache(folder).n_rows == 500
    (folder / "mine.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"also holds 'mine\.txt'"):
        write_planted_cache(tmp_path, SMALL, overwrite=True)


def test_info_says_what_it_is(folder):
    lines = "\n".join(describe(folder))
    assert "model: planted:smoke" in lines and "planted: n_features 64, d_in 24" in lines
    assert "text: source none: planted features" in lines
    assert "rows: 1,000 of width 24" in lines and "intact" in lines


def test_an_unfinished_cache_says_how_to_go_on(tmp_path):
    folder = write_planted_cache(tmp_path, SMALL)
    manifest = json.loads((folder / "manifest.json").read_text())
    write_manifest(folder / "manifest.json", manifest | {"status": "writing"})
    with pytest.raises(ArtifactError, match=r"unfinished .* repeat the command .* --overwrite"):
        open_cache(folder)
    assert "with --overwrite" in describe(folder)[-1]


def test_an_unfinished_cache_is_made_by_the_same_settings_and_no_others(tmp_path):
    folder = write_planted_cache(tmp_path, SMALL)
    whole = open_cache(folder).content_hash
    manifest = json.loads((folder / "manifest.json").read_text())
    write_manifest(folder / "manifest.json", manifest | {"status": "writing"})
    with pytest.raises(ConfigError, match="already exists: give --overwrite"):
        write_planted_cache(tmp_path, replace(SMALL, seed=1))
    assert open_cache(write_planted_cache(tmp_path, SMALL)).content_hash == whole


def test_the_truth_comes_back_from_a_dictionary_alone(folder, tmp_path):
    saved = saved_on(open_cache(folder).provenance(), tmp_path / "sae")
    assert truth_of(saved) == SMALL


def test_the_truth_is_refused_where_it_cannot_be_trusted(folder, tmp_path):
    origin = open_cache(folder).provenance()
    wide = PlantedConfig(n_features=64, d_in=25)
    cases = {
        "not on planted features": {k: v for k, v in origin.items() if k != "planted"},
        "cannot read .*unknown field 'wings'": origin
        | {"planted": origin["planted"] | {"wings": 2}},
        "under another hash": origin | {"planted": origin["planted"] | {"seed": 5}},
        "have width 25": cache.planted_manifest(wide)["made_from"],
    }
    for index, (message, changed) in enumerate(cases.items()):
        saved = saved_on(changed, tmp_path / str(index))
        with pytest.raises(ArtifactError, match=message):
            truth_of(saved)


def test_a_record_without_later_fields_is_still_read(folder, tmp_path):
    from saelab.synthetic.truth import _hash

    origin = open_cache(folder).provenance()
    older = {key: value for key, value in to_plain(SMALL).items() if key != "noise"}
    origin |= {"planted": older, "model_hash": _hash(older)}
    assert truth_of(saved_on(origin, tmp_path / "sae")) == SMALL


def test_the_core_suite_refuses_it_in_one_sentence(folder, tmp_path, capsys):
    saved_on(open_cache(folder).provenance(), tmp_path / "sae")
    assert main(["eval", "core", str(tmp_path / "sae")]) == 2
    message = capsys.readouterr().err
    assert "trained on planted features" in message and "use `saelab eval recovery`" in message


def run(capsys, *words):
    code = main(words)
    return code, *capsys.readouterr()


def test_the_command_writes_the_cache_and_says_what_is_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ("synthetic", "resonance", "out", "--n-features", "128", "--support.active", "2", "4")
    code, printed, _ = run(capsys, *words, "--n-rows", "600", "--d-in", "16")
    assert code == 0
    assert "cache: out/planted, 600 rows of width 16" in printed
    assert "128 features, 3 active in a row on average" in printed
    for line in ("coherence: 0.", "chance: 0.", "saelab train --cache out/planted"):
        assert line in printed
    assert "--d-sae 512 --k 3" in printed and "saelab eval recovery" in printed
    opened = open_cache(tmp_path / "out")
    assert opened.manifest["made_from"]["planted"]["support"] == {"active": [2, 4]}
    # Another number of features is no longer the preset.
    assert opened.model_name == "planted:custom"


def test_the_preset_gives_the_options_their_defaults(tmp_path, capsys):
    code, *_ = run(capsys, "synthetic", "cooccurrence", str(tmp_path), "--n-rows", "300")
    assert code == 0
    planted = open_cache(tmp_path).manifest["made_from"]["planted"]
    assert planted == to_plain(replace(PRESETS["cooccurrence"], n_rows=300))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["smok", "x"], "unknown preset 'smok'; did you mean 'smoke'?"),
        ([], "no preset was given: type `saelab synthetic PRESET OUT`; presets: imbalanced"),
        (["smoke"], "no folder was given"),
        (["--n-rows", "5", "smoke", "x"], "must be the first word: saelab synthetic smoke"),
        (["smoke", "x", "--noise", "-1"], "noise is -1.0; it must be at least 0, finite"),
        (["smoke", "x", "--nois", "1"], "did you mean --noise?"),
    ],
)
def test_mistakes_get_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "synthetic", *words)
    assert code == 2 and len(err.strip().splitlines()) == 1 and message in err
    assert not list(tmp_path.iterdir())
