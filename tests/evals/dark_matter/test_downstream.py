"""What each part of the error is worth to a model, checked against passes made by hand."""

import dataclasses

import pytest
import torch

from saelab.cache.config import TokenFilter
from saelab.dictionary import Site, load_dictionary
from saelab.dictionary.data_spec import DataSpec
from saelab.dictionary.decomposition import ErrorProbe
from saelab.dictionary.site_rows import held_out_batches
from saelab.errors import ActivationError
from saelab.evals.dark_matter.downstream import (
    CONDITIONS,
    LiveParts,
    downstream_charts,
    measure_downstream,
    numbers,
)
from saelab.evals.dark_matter.rows import CONTEXT_TEST, cells_of

HOOK = "blocks.1.hook_resid_post"
SETTINGS = {"n_tokens": 96, "batch_contexts": 2}


def values(findings):
    return {name: finding.value for name, finding in numbers(findings).items()}


@pytest.fixture
def spec(tiny_model_folder, tiny_model, model_text):
    return DataSpec(
        model=str(tiny_model_folder),
        model_hash=tiny_model.content_hash,
        model_dtype="float32",
        site=Site.of(HOOK),
        text=model_text,
        context_length=32,
        token_filter=TokenFilter(max_norm_ratio=None),
        norm_ceilings=(None,),
    )


@pytest.fixture
def saved(save_trained, topk_dictionary):
    return load_dictionary(save_trained(topk_dictionary(), "d"))


@pytest.fixture
def probe():
    generator = torch.Generator().manual_seed(5)
    weight = 0.3 * torch.eye(32) + 0.05 * torch.randn(32, 32, generator=generator)
    return ErrorProbe(weight, 0.1 * torch.randn(32, generator=generator))


def test_losses_and_shares_are_those_of_passes_made_by_hand(tiny_model, spec, saved, probe):
    found = measure_downstream(tiny_model, spec, saved, probe, **SETTINGS)
    tokens = torch.cat([b.tokens for b in held_out_batches(tiny_model, spec, 96, 2)])
    keep = tokens != tiny_model.bos_id
    keep[:, 0] = False
    for special in tiny_model.special_ids:
        keep &= tokens != special
    rows = tiny_model.capture(tokens, [HOOK])[HOOK][keep]
    reconstruction = saved.dictionary(rows)
    linear = rows @ probe.weight + probe.bias
    nonlinear = rows - reconstruction - linear

    def loss(replacement):
        def splice(x):
            x = x.clone()
            x[keep] = replacement
            return x

        return float(tiny_model.run(tokens, {HOOK: splice}).loss.double().mean())

    got = values(found)
    clean = float(tiny_model.run(tokens).loss.double().mean())
    sae = loss(reconstruction)
    plus = {"linear": loss(reconstruction + linear), "nonlinear": loss(reconstruction + nonlinear)}
    assert got["downstream_loss_original"] == pytest.approx(clean, rel=1e-6)
    assert got["downstream_loss_sae"] == pytest.approx(sae, rel=1e-5)
    error = rows - reconstruction
    for part, vector in (("linear", linear), ("nonlinear", nonlinear)):
        recovered = 100 * (sae - plus[part]) / (sae - clean)
        assert got[f"downstream_recovered_ce_{part}"] == pytest.approx(recovered, abs=0.2)
        # Taking a part away from the activation leaves the reconstruction and the other part.
        removed = 100 * (loss(rows - vector) - clean) / (sae - clean)
        assert got[f"downstream_removed_ce_{part}"] == pytest.approx(removed, abs=0.2)
        left = nonlinear if part == "linear" else linear
        share = 100 * (1 - float(left.square().sum() / error.square().sum()))
        assert got[f"downstream_recovered_r_squared_{part}"] == pytest.approx(share, rel=1e-4)
        norm, norms = vector.norm(dim=1), error.norm(dim=1)
        assert got[f"downstream_norm_share_{part}"] == pytest.approx(
            float(100 * norm.mean() / norms.mean()), rel=1e-4
        )
        assert got[f"downstream_norm_share_per_row_{part}"] == pytest.approx(
            float(100 * (norm / norms).mean()), rel=1e-4
        )
    assert got["downstream_n_rows"] == int(keep.sum())
    assert got["downstream_n_positions"] == tokens.shape[0] * 31


def test_both_parts_added_give_the_untouched_model(tiny_model, spec, saved, probe):
    got = values(measure_downstream(tiny_model, spec, saved, probe, **SETTINGS))
    original, identity = got["downstream_loss_original"], got["downstream_loss_identity"]
    assert identity == pytest.approx(original, rel=1e-6)
    assert got["downstream_kl_identity"] == pytest.approx(0, abs=1e-6)
    assert got["downstream_identity_deviation"] < 1e-6


def test_batches_do_not_change_what_is_not_drawn(tiny_model, spec, saved, probe):
    one, two = (
        values(measure_downstream(tiny_model, spec, saved, probe, n_tokens=96, batch_contexts=b))
        for b in (1, 3)
    )
    for name in one:
        if "random" not in name and "shuffled" not in name:
            assert one[name] == pytest.approx(two[name], rel=1e-4, abs=1e-5), name
    again = values(
        measure_downstream(tiny_model, spec, saved, probe, n_tokens=96, batch_contexts=3)
    )
    assert again == two


def test_the_first_positions_are_left_alone_and_not_counted(tiny_model, spec, saved, probe):
    found = measure_downstream(tiny_model, spec, saved, probe, first_position=20, **SETTINGS)
    assert found.n_positions == 3 * 11 and 0 < found.n_rows <= 3 * 12
    tokens = torch.cat([b.tokens for b in held_out_batches(tiny_model, spec, 96, 2)])
    clean = float(tiny_model.run(tokens).loss[:, 20:].double().sum())
    assert found.original == pytest.approx(clean, rel=1e-5)
    assert "from position 20 on" in numbers(found)["downstream_loss_sae"].text


def test_contexts_that_the_probe_was_fitted_on_are_left_out(tiny_model, spec, saved, probe):
    options = {"n_tokens": 128, "batch_contexts": 3, "seed": 2}
    found = measure_downstream(tiny_model, spec, saved, probe, train_fraction=0.5, **options)
    tokens = torch.cat([b.tokens for b in held_out_batches(tiny_model, spec, 32 * 40, 1)])
    index = torch.arange(len(tokens))
    cells = cells_of(index, torch.zeros_like(index), seed=2, train_fraction=0.5)
    unseen = tokens[cells >= CONTEXT_TEST[0]][:4]
    assert int((cells < CONTEXT_TEST[0]).sum()) > 0 and found.n_contexts == len(unseen) == 4
    clean = float(tiny_model.run(unseen).loss.double().sum())
    assert found.original == pytest.approx(clean, rel=1e-6)


def test_a_text_of_nothing_unseen_is_refused(tiny_model, spec, saved, probe, caplog):
    with pytest.raises(ActivationError, match="no context that the probe was not fitted on"):
        measure_downstream(tiny_model, spec, saved, probe, train_fraction=1 - 1e-12, **SETTINGS)
    measure_downstream(
        tiny_model, spec, saved, probe, n_tokens=10**6, batch_contexts=8, train_fraction=0.9
    )
    assert "all of them are used" in caplog.text


def test_controls_have_the_norms_of_what_they_stand_for(saved, probe):
    from saelab.dictionary.decomposition import decompose

    rows = torch.randn(50, 32, generator=torch.Generator().manual_seed(8))
    live = LiveParts(
        decompose(saved.dictionary, probe, rows), rows, torch.Generator().manual_seed(0)
    )
    linear = live.parts.linear_error
    random, shuffled = live.random(linear), live.shuffled(linear)
    for control in (random, shuffled):
        torch.testing.assert_close(control.norm(dim=1), linear.norm(dim=1))
    assert abs(float(torch.nn.functional.cosine_similarity(random, linear).mean())) < 0.15
    cosines = torch.nn.functional.cosine_similarity(shuffled, linear)
    assert float((cosines < 0.99).float().mean()) > 0.5
    zero = torch.zeros(3, 32)
    assert torch.equal(live.random(zero), zero)
    moved = CONDITIONS["random_error"].replacement(live) - rows
    torch.testing.assert_close(moved.norm(dim=1), live.parts.error.norm(dim=1))


def test_every_value_is_defined_and_an_undefined_share_is_none(tiny_model, spec, saved, probe):
    found = measure_downstream(tiny_model, spec, saved, probe, **SETTINGS)
    assert all(number.unit and number.text for number in numbers(found).values())
    recovery, _ = downstream_charts(found)
    assert all(len(series.x) == len(series.y) == 6 for series in recovery.series)
    harmless = dataclasses.replace(found, loss=dict.fromkeys(found.loss, found.original))
    assert values(harmless)["downstream_recovered_ce_linear"] is None
    assert values(harmless)["downstream_random_error_ratio"] is None
