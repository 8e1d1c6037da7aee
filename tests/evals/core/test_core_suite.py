"""The suite "core" on a tiny model: against brute force, and against what a user can get wrong."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from saelab.cache.config import TokenFilter
from saelab.config import to_plain
from saelab.dictionary import Dictionary, save_dictionary
from saelab.errors import ArtifactError, ConfigError, ModelError, TextError
from saelab.evals.core.config import CoreConfig
from saelab.evals.core.suite import SUITE, run_core
from saelab.evals.terminal import run_command
from saelab.formats.evaluation_result import read_evaluation_result
from saelab.stats.metric_definitions import METRICS, MODES_GROUP, TRAINING_GROUP
from saelab.text.contexts import TextConfig
from tests.conftest import context_batches, document_windows

HOOK = "blocks.1.hook_resid_post"
CONTEXT, D_IN, CEILING = 32, 32, 11.0
WORDS = ("king", "queen", "mill", "river", "boat", "corn", "salt", "congress", "winter", "war")
SMALL = CoreConfig(n_tokens=20 * CONTEXT, n_loss_tokens=8 * CONTEXT, device="cpu", controls=())


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A text file of many short documents, half of them held out."""
    folder = tmp_path_factory.mktemp("text")
    generator = random.Random(0)
    documents = [" ".join(generator.choices(WORDS, k=30)) for _ in range(80)]
    (folder / "text.txt").write_text("\n<|endoftext|>\n".join(documents))
    return TextConfig(source=str(folder / "text.txt"), held_out_fraction=0.5)


@pytest.fixture
def save(tmp_path, tiny_model, tiny_model_folder, text):
    """A function that saves a dictionary as if trained on the tiny model."""

    def save_it(dictionary, name="sae", **changes):
        origin = {
            "model": str(tiny_model_folder),
            "model_hash": tiny_model.content_hash,
            "model_dtype": "float32",
            "hook_point": HOOK,
            "text": to_plain(text),
            "context_length": CONTEXT,
            "row_rule": to_plain(TokenFilter()),
            "norm_ceiling": CEILING,
            "cache_hash": None,
        }
        made_from = {key: value for key, value in (origin | changes).items() if value != "left out"}
        inputs = torch.randn(16, dictionary.d_in, generator=torch.Generator().manual_seed(1))
        save_dictionary(
            tmp_path / name, dictionary, self_test_inputs=inputs, training={}, made_from=made_from
        )
        return tmp_path / name

    return save_it


def random_topk(seed: int = 0, d_in: int = D_IN, d_sae: int = 48) -> Dictionary:
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=1)
    return Dictionary(
        "topk",
        W_enc=W_dec.T.clone(),
        W_dec=W_dec,
        b_dec=0.1 * torch.randn(d_in, generator=generator),
        b_enc=torch.zeros(d_sae),
        k=6,
    )


def identity() -> Dictionary:
    eye = torch.eye(D_IN)
    both = torch.cat([eye, -eye])
    return Dictionary(
        "relu", W_enc=both.T.clone(), W_dec=both, b_dec=torch.zeros(D_IN), b_enc=torch.zeros(64)
    )


def constant(vector: torch.Tensor, scale: float = 0.0) -> Dictionary:
    """A dictionary whose every reconstruction is one vector (where scale is 0)."""
    return Dictionary(
        "relu",
        W_enc=torch.full((D_IN, 4), scale),
        W_dec=torch.full((4, D_IN), scale),
        b_dec=vector,
        b_enc=torch.zeros(4),
    )


def brute_force(model, text, dictionary, config: CoreConfig) -> dict[str, float]:
    """The suite's numbers written down once more: dense, in float64, all contexts at once."""
    batches = context_batches(
        text, model, split="held_out", context_length=CONTEXT, batch_contexts=1
    )
    tokens = torch.cat([next(batches) for _ in range(config.n_tokens // CONTEXT)])
    activations = model.capture(tokens, [HOOK])[HOOK]
    keep = torch.ones_like(tokens, dtype=torch.bool)
    keep[:, 0] = False
    for special in model.special_ids:
        keep &= tokens != special
    n_special = (~keep).sum() - len(tokens)
    norm_excluded = keep & (activations.norm(dim=-1) > CEILING)
    keep &= ~norm_excluded
    x = activations[keep].double()
    codes = dictionary.encode_dense(activations[keep]).double()
    hat = dictionary.decode(codes.float()).double()
    mean = x.mean(0)
    short, document = document_windows(text, model, CONTEXT, config.n_loss_tokens // CONTEXT)
    short_keep = model.capture(short, [HOOK])[HOOK].norm(dim=-1) <= CEILING
    short_keep[:, 0] = False
    for special in model.special_ids:
        short_keep &= short != special

    def run(make):
        hook = {HOOK: lambda a: torch.where(short_keep[..., None], make(a).to(a), a)}
        return model.run(short, hook)

    clean = model.run(short)
    spliced = run(lambda a: dictionary(a.reshape(-1, D_IN)).reshape(a.shape))
    p, q = (out.logits[:, :-1].double().log_softmax(-1) for out in (clean, spliced))
    loss = {
        "clean": clean.loss.double().mean().item(),
        "spliced": spliced.loss.double().mean().item(),
        "zero": run(torch.zeros_like).loss.double().mean().item(),
        "mean": run(mean.expand_as).loss.double().mean().item(),
    }
    fvu = ((x - hat).square().sum() / (x - mean).square().sum()).item()
    return {
        "fvu": fvu,
        "explained_variance": 1 - fvu,
        "l0_mean": (codes > 0).sum(1).double().mean().item(),
        "dead_fraction": ((codes > 0).sum(0) == 0).double().mean().item(),
        "loss_clean": loss["clean"],
        "loss_spliced": loss["spliced"],
        "loss_zero_ablation": loss["zero"],
        "loss_mean_ablation": loss["mean"],
        "loss_recovered_zero": (loss["zero"] - loss["spliced"]) / (loss["zero"] - loss["clean"]),
        "loss_recovered_mean": (loss["mean"] - loss["spliced"]) / (loss["mean"] - loss["clean"]),
        "kl": (p.exp() * (p - q)).sum(-1).mean().item(),
        "n_rows": len(x),
        "n_tokens": tokens.numel(),
        "n_excluded_bos": len(tokens),
        "n_excluded_separator": n_special.item(),
        "n_excluded_norm": norm_excluded.sum().item(),
        "n_loss_rows_replaced": short_keep.sum().item(),
        "n_loss_positions": short[:, 1:].numel(),
        "n_loss_documents": len(set(document)),
    }


def values_of(result) -> dict[str, float]:
    return {metric.name: metric.value for metric in result.metrics}


def test_every_number_equals_brute_force(save, tiny_model, text):
    dictionary = random_topk()
    [result] = run_core([save(dictionary)], SMALL)
    expected = brute_force(tiny_model, text, dictionary, SMALL)
    assert expected["n_excluded_norm"] > 0, "the test needs rows above the ceiling"
    assert expected["n_excluded_separator"] > 0, "the test needs separators"
    found = {name: values_of(result)[name] for name in expected}
    assert found == pytest.approx(expected, rel=2e-5, abs=1e-6)


def test_numbers_do_not_depend_on_the_batch_size(save):
    folder = save(random_topk())
    reference = None
    for batch in range(1, 9):
        config = CoreConfig(
            n_tokens=SMALL.n_tokens,
            n_loss_tokens=SMALL.n_loss_tokens,
            batch_contexts=batch,
            device="cpu",
            overwrite=True,
        )
        values = values_of(run_core([folder], config)[0])
        reference = reference or values
        assert values == pytest.approx(reference, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_losses_do_not_depend_on_the_batch_size_where_the_model_is_in_bfloat16(save):
    """They are measured in float32, whatever the rows are in."""
    folder = save(random_topk(), model_dtype="bfloat16")
    names = ("loss_clean", "loss_spliced", "loss_recovered_zero", "loss_recovered_mean", "kl")
    reference = None
    for batch in range(1, 9):
        config = replace(SMALL, batch_contexts=batch, overwrite=True)
        values = values_of(run_core([folder], config)[0])
        found = {name: values[name] for name in names}
        reference = reference or found
        assert found == pytest.approx(reference, rel=1e-5, abs=1e-6)


def test_intervals_are_those_of_resampled_documents(save):
    """Documents drawn again and again in plain float64, from the table beside the result."""
    from pyarrow import parquet

    folder = save(random_topk())
    [result] = run_core([folder], replace(SMALL, n_loss_tokens=20 * CONTEXT))
    path = folder / "evals" / result.item_files["documents"]
    sums = {n: np.array(v) for n, v in parquet.read_table(path).to_pydict().items()}
    n = len(sums["document"])
    assert n == result.value("n_loss_documents") == len(set(sums["document"])) > 10
    assert sums["positions"].sum() == result.value("n_loss_positions")
    assert f"{sums['positions'].sum():,.0f} predicted positions, {n} documents" in result.notes[0]
    drawn = np.random.default_rng(3).integers(n, size=(4000, n))
    clean, spliced, zero, kl, positions = (
        sums[name][drawn].sum(1)
        for name in ("clean", "spliced", "zero_ablation", "kl", "positions")
    )
    for name, resampled in {
        "loss_recovered_zero": (zero - spliced) / (zero - clean),
        "kl": kl / positions,
    }.items():
        low, high = np.quantile(resampled, (0.025, 0.975))
        assert low < result.value(name) < high
        found = (result.value(f"{name}_low"), result.value(f"{name}_high"))
        assert found == pytest.approx((low, high), abs=0.25 * (high - low))


def test_one_document_gives_no_interval(save):
    [result] = run_core([save(random_topk())], replace(SMALL, n_loss_tokens=CONTEXT))
    assert result.value("n_loss_documents") == 1
    assert result.value("kl") > 0
    assert result.value("kl_low") is None and result.value("loss_recovered_mean_high") is None


def test_an_identity_dictionary_costs_nothing(save):
    values = values_of(run_core([save(identity())], SMALL)[0])
    assert values["fvu"] == pytest.approx(0, abs=1e-12)
    assert values["cosine_similarity"] == pytest.approx(1)
    assert values["relative_reconstruction_bias"] == pytest.approx(1)
    assert values["loss_spliced"] == pytest.approx(values["loss_clean"])
    assert values["kl"] == pytest.approx(0, abs=1e-6)
    assert values["loss_recovered_zero"] == pytest.approx(1, abs=1e-5)


def test_reconstructing_the_mean_is_mean_ablation(save):
    """The recorded training mean is what mean ablation uses, and the definition says so."""
    mean = torch.linspace(-1, 1, D_IN)
    [result] = run_core([save(constant(mean), mean=mean.tolist())], SMALL)
    values = values_of(result)
    assert values["loss_spliced"] == values["loss_mean_ablation"]
    assert values["loss_recovered_mean"] == 0
    assert values["dead_fraction"] == 1
    by_name = {metric.name: metric for metric in result.metrics}
    assert "dictionary's training activations" in by_name["loss_mean_ablation"].definition
    zero = run_core([save(constant(torch.zeros(D_IN)), "zero")], SMALL)[0]
    assert values_of(zero)["loss_spliced"] == values_of(zero)["loss_zero_ablation"]
    assert values_of(zero)["relative_reconstruction_bias"] == 0


def test_several_dictionaries_share_one_pass_and_get_the_numbers_they_get_alone(
    save, tiny_model, monkeypatch
):
    folders = [save(random_topk(seed), f"sae{seed}") for seed in range(3)]
    alone = [run_core([folder], SMALL)[0] for folder in folders]
    calls = {"capture": 0, "run": 0}
    for name in calls:
        original = getattr(type(tiny_model), name)

        def counted(self, *args, _original=original, _name=name, **kwargs):
            calls[_name] += 1
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(type(tiny_model), name, counted)
    together = run_core(folders, replace(SMALL, overwrite=True))
    assert [values_of(r) for r in together] == [values_of(r) for r in alone]
    # 20 contexts in batches of 4; 8 contexts of losses: clean, zero, one shared mean, 3 spliced.
    assert calls == {"capture": 5, "run": 2 * (1 + 1 + 1 + 3)}


def test_dictionaries_of_different_row_rules_keep_their_own(save):
    loose = to_plain(TokenFilter(max_norm_ratio=None))
    strict, free = run_core(
        [
            save(random_topk(), "strict"),
            save(random_topk(), "free", token_filter=loose, norm_ceiling=None),
        ],
        SMALL,
    )
    assert strict.value("n_excluded_norm") > 0
    assert free.value("n_excluded_norm") == 0
    assert free.value("n_rows") == strict.value("n_rows") + strict.value("n_excluded_norm")


def test_files_are_complete_and_readable(save):
    from pyarrow import parquet

    folder = save(random_topk())
    [result] = run_core([folder], SMALL)
    evals = folder / "evals"
    assert sorted(path.name for path in evals.iterdir()) == [
        "core.html",
        "core.json",
        "core_documents.parquet",
        "core_features.parquet",
    ]
    content = json.loads((evals / "core.json").read_text())
    assert (content["kind"], content["schema_version"]) == ("evaluation_result", 2)
    assert content["dictionary"]["name"] == "sae"
    expected = [
        name
        for name, metric in METRICS.items()
        if metric.group not in (MODES_GROUP, TRAINING_GROUP)
    ]
    assert [metric["name"] for metric in content["metrics"]] == expected
    assert all("{" not in metric["definition"] for metric in content["metrics"])
    assert read_evaluation_result(evals / "core.json") == result
    features = parquet.read_table(evals / result.item_files["features"]).to_pydict()
    assert features["latent"] == list(range(48))
    n_rows = result.value("n_rows")
    assert sum(features["count"]) / n_rows == pytest.approx(result.value("l0_mean"))
    assert features["density"] == [count / n_rows for count in features["count"]]
    for count, mean, largest in zip(
        features["count"], features["mean_activation"], features["max_activation"], strict=True
    ):
        assert (mean is None and largest is None) if count == 0 else 0 < mean <= largest


def test_out_gets_one_folder_per_dictionary_where_there_are_several(save, tmp_path):
    folders = [save(random_topk(seed), f"sae{seed}") for seed in range(2)]
    run_core(
        folders[:1], CoreConfig(n_tokens=64, n_loss_tokens=64, device="cpu", out=tmp_path / "a")
    )
    run_core(folders, CoreConfig(n_tokens=64, n_loss_tokens=64, device="cpu", out=tmp_path / "b"))
    assert (tmp_path / "a" / "core.json").exists()
    assert (tmp_path / "b" / "sae1" / "core.html").exists()
    assert not (folders[0] / "evals").exists()


def test_an_existing_result_is_kept_unless_overwrite_is_asked_for(save):
    folder = save(random_topk())
    run_core([folder], SMALL)
    before = (folder / "evals" / "core.json").read_bytes()
    with pytest.raises(
        ConfigError, match=r"core\.json exists already, of other settings: add --overwrite"
    ):
        run_core([folder], replace(SMALL, n_tokens=12 * CONTEXT))
    assert (folder / "evals" / "core.json").read_bytes() == before


def test_an_old_result_stays_until_the_new_one_is_there(save, monkeypatch):
    folder = save(random_topk())
    run_core([folder], SMALL)
    path = folder / "evals" / "core.json"
    before = path.read_bytes()
    again = replace(SMALL, n_tokens=12 * CONTEXT, overwrite=True)

    def fails(*given):
        raise OSError("no report today")

    monkeypatch.setattr("saelab.report.result_page.write_result_page", fails)
    with pytest.raises(OSError, match="no report today"):
        run_core([folder], again)
    assert path.read_bytes() == before
    monkeypatch.undo()
    run_core([folder], again)
    assert read_evaluation_result(path).settings["n_tokens"] == 12 * CONTEXT


def test_the_same_command_again_measures_only_what_is_missing(
    save, tiny_model, monkeypatch, caplog
):
    folders = [save(random_topk(seed), f"sae{seed}") for seed in range(2)]
    [first] = run_core(folders[:1], SMALL)
    with caplog.at_level("INFO"):
        kept, second = run_core(folders, SMALL)
    assert "kept" in caplog.text and "sae0" in caplog.text
    assert (kept, second.dictionary_name) == (first, "sae1")

    def refuse(*given, **named):
        raise AssertionError("nothing is left to measure")

    monkeypatch.setattr(type(tiny_model), "run", refuse)
    assert run_core(folders, replace(SMALL, device="auto")) == [kept, second]
    (folders[0] / "evals" / "core_features.parquet").unlink()
    with pytest.raises(AssertionError, match="nothing is left"):
        run_core(folders, SMALL)
    monkeypatch.undo()
    save(random_topk(7), "sae1")
    with pytest.raises(ConfigError, match="of another dictionary: add --overwrite"):
        run_core(folders, SMALL)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_hash": "0" * 64}, ArtifactError, r"trained on .* content hash 000000000000…"),
        ({"bos_id": 1}, ArtifactError, r"trained on .* BOS token 1, not 0"),
        ({"hook_point": "blocks.9.hook_resid_post"}, ModelError, r"blocks\.9\.hook_resid_post"),
        ({"hook_point": "blocks.1.attn.hook_k"}, ArtifactError, "activations of width 32, but"),
        ({"hook_point": "left out"}, ArtifactError, "does not record its hook_point"),
        ({"context_length": 4096}, ConfigError, "context_length: 4096 is longer than the 128"),
        ({"mean": [1.0]}, ArtifactError, "mean activation that is not 32 finite numbers"),
        ({"text": {"source": "sotu", "colour": 1}}, ConfigError, "unknown field 'colour'"),
    ],
)
def test_a_dictionary_of_other_origin_is_refused(save, changes, error, message):
    folder = save(random_topk(), **changes)
    with pytest.raises(error, match=message):
        run_core([folder], SMALL)
    assert not (folder / "evals").exists()


def test_a_dictionary_of_another_width_is_refused(save):
    with pytest.raises(ArtifactError, match="takes activations of width 24, but"):
        run_core([save(random_topk(d_in=24))], SMALL)


def test_output_that_is_not_finite_is_refused_and_nothing_is_written(save):
    huge = constant(torch.zeros(D_IN), scale=1e30)
    folder = save(huge)
    with pytest.raises(ArtifactError, match=r"dictionary .*sae cannot be evaluated: .* NaN or inf"):
        run_core([folder], SMALL)
    assert not (folder / "evals").exists()


def test_too_little_text_is_refused(save, tmp_path):
    (tmp_path / "short.txt").write_text("king and queen")
    text = to_plain(TextConfig(source=str(tmp_path / "short.txt"), held_out_fraction=0.5))
    with pytest.raises(TextError, match=r"less than one batch|no text"):
        run_core([save(random_topk(), text=text)], SMALL)


def test_text_shorter_than_asked_for_is_evaluated_whole_and_counted(save, caplog):
    config = CoreConfig(n_tokens=10**6, n_loss_tokens=64, batch_contexts=64, device="cpu")
    [result] = run_core([save(random_topk())], config)
    assert 0 < result.value("n_tokens") < 10**6
    assert "of the 1000000 asked for" in caplog.text


def test_settings_that_do_not_fit_are_named_together():
    with pytest.raises(ConfigError, match=r"batch_contexts is -1; .*n_loss_tokens is 0;"):
        CoreConfig(n_loss_tokens=0, batch_contexts=-1)
    with pytest.raises(ConfigError, match=r"n_loss_tokens: 99 exceeds n_tokens = 9"):
        CoreConfig(n_tokens=9, n_loss_tokens=99)


def test_losses_take_no_more_than_the_tokens_asked_for(save, capsys):
    assert CoreConfig().loss_tokens == 16_384
    assert CoreConfig(n_tokens=8192).loss_tokens == 8192
    assert CoreConfig(n_tokens=8192, n_loss_tokens=64).loss_tokens == 64
    folder = save(random_topk())
    run_command(SUITE, [str(folder), "--n-tokens", "64", "--device", "cpu"])
    result = read_evaluation_result(folder / "evals" / "core.json")
    assert result.settings["n_loss_tokens"] == 64
    assert result.value("n_loss_contexts") == result.value("n_contexts")


def test_the_same_dictionary_twice_and_none_are_refused(save):
    folder = save(random_topk())
    with pytest.raises(ConfigError, match="same folder: name each once"):
        run_core([folder, folder], SMALL)
    with pytest.raises(ConfigError, match="no dictionary was given"):
        run_core([], SMALL)
    for given in ("sae_weights.safetensors", "saelab.json"):
        with pytest.raises(ConfigError, match=f"{given} is a file and .*`saelab import` opens"):
            run_core([folder / given], SMALL)


def test_the_command_evaluates_and_shows_a_table(save, capsys):
    folder = save(random_topk())
    run_command(
        SUITE, [str(folder), "--n-tokens", "64", "--n-loss-tokens", "64", "--device", "cpu"]
    )
    shown = capsys.readouterr().out
    assert "FVU" in shown
    assert "core.html" in shown
    assert math.isfinite(read_evaluation_result(folder / "evals" / "core.json").value("fvu"))
    with pytest.raises(ConfigError, match="no dictionary was given: type `saelab eval core FOLDER"):
        run_command(SUITE, [])
