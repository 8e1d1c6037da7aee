"""The suites on padded contexts: the numbers of single passes without padding."""

from __future__ import annotations

import json

import pytest
import torch

from saelab.cache.config import TokenFilter
from saelab.dictionary import Dictionary, InferenceModes, load_dictionary, save_dictionary
from saelab.dictionary.data_spec import DataSpec
from saelab.dictionary.site import Site
from saelab.evals.core.config import CoreConfig
from saelab.evals.core.losses import measure_losses
from saelab.evals.core.modes import ASSISTED, THRESHOLD, measure_modes
from saelab.evals.core.rows import measure_rows
from saelab.evals.steering.measure import draw_prompts
from saelab.text.contexts import TextConfig, is_held_out, read_documents

HOOK = "blocks.1.hook_resid_post"
LENGTH = 16


@pytest.fixture
def setting(tiny_model, tmp_path):
    path = tmp_path / "x.jsonl"
    words = [
        "the",
        "king",
        "met",
        "the",
        "queen",
        "at",
        "the",
        "old",
        "mill",
        "near",
        "the",
        "wide",
        "river",
    ]
    texts = [" ".join(words[: 1 + i % 9]) + f" {i}" for i in range(24)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    text = TextConfig(source=str(path), one_document_per_context=True, held_out_fraction=0.5)
    spec = DataSpec(
        model=tiny_model.name,
        model_hash=None,
        model_dtype="float32",
        site=Site.of(HOOK),
        text=text,
        context_length=LENGTH,
        token_filter=TokenFilter(),
        norm_ceilings=(None,),
    )
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(48, 32, generator=generator), dim=1)
    dictionary = Dictionary(
        "topk",
        W_enc=W_dec.T.clone(),
        W_dec=W_dec,
        b_dec=torch.zeros(32),
        b_enc=torch.zeros(48),
        k=6,
    )
    save_dictionary(
        tmp_path / "d", dictionary, self_test_inputs=torch.randn(4, 32), training={}, made_from={}
    )
    return spec, load_dictionary(tmp_path / "d")


def single_contexts(model, spec, length=LENGTH):
    """Every context of the held-out text by itself, without padding."""
    contexts = []
    for document in read_documents(spec.text):
        if is_held_out(spec.text, document.text):
            (ids,) = model.tokenize([document.text])
            step = length - 1
            contexts += [
                torch.tensor([[model.bos_id, *ids[start : start + step]]])
                for start in range(0, len(ids), step)
            ]
    return contexts


def test_steering_draws_contexts_that_no_padding_fills(tiny_model, setting):
    spec, _ = setting
    short = single_contexts(tiny_model, spec, 6)
    whole = {tuple(tokens[0].tolist()) for tokens in short if tokens.shape[1] == 6}
    assert len(whole) < len(short)
    prompts = draw_prompts(tiny_model, spec, count=8, length=6, seed=0)
    assert {tuple(tokens) for tokens in prompts.tolist()} <= whole


def test_inference_modes_are_those_of_single_passes(tiny_model, setting, tmp_path):
    spec, plain = setting
    names = ("beta", "gradient_rms", "gradient_scale_per_token", "threshold")
    inference = dict(zip(names, (2.0, 0.01, False, 0.5), strict=True))
    save_dictionary(
        tmp_path / "modes",
        plain.dictionary,
        self_test_inputs=torch.randn(4, 32),
        training={"method": "gradient_topk", "inference": inference},
        made_from={"hook_point": HOOK},
    )
    saved = load_dictionary(tmp_path / "modes")
    modes = InferenceModes(saved)
    contexts = single_contexts(tiny_model, spec)
    expected = dict.fromkeys((THRESHOLD, ASSISTED), 0.0)
    active = dict.fromkeys(expected, 0)
    n_rows = 0
    for tokens in contexts:
        rows, gradients = tiny_model.capture_with_gradients(tokens, [HOOK])[HOOK]
        codes = {
            THRESHOLD: modes.threshold(rows[0, 1:]),
            ASSISTED: modes.gradient_assisted(rows[0, 1:], gradients[0, 1:]),
        }
        n_rows += rows.shape[1] - 1
        for mode, chosen in codes.items():
            written = saved.dictionary.decode(chosen)[None]
            splice = {HOOK: lambda a, w=written: torch.cat([a[:, :1], w.to(a)], dim=1)}
            expected[mode] += float(tiny_model.run(tokens, splice).loss.double().sum())
            active[mode] += int(chosen.l0().sum())
    config = CoreConfig(n_tokens=len(contexts) * LENGTH, batch_contexts=5, device="cpu")
    losses = measure_losses(tiny_model, spec, [saved], [torch.zeros(32)], config)
    found = measure_modes(tiny_model, spec, [saved], losses, config)[0].sums
    for mode in expected:
        assert found[mode].reconstruction.values()["n_rows"] == n_rows
        assert found[mode].active == active[mode]
        assert found[mode].spliced == pytest.approx(expected[mode], rel=1e-4)


def test_losses_and_rows_are_those_of_single_passes(tiny_model, setting):
    spec, saved = setting
    contexts = single_contexts(tiny_model, spec)
    n_tokens = len(contexts) * LENGTH
    clean = spliced = zero = 0.0
    rows = []
    for tokens in contexts:
        activations = tiny_model.capture(tokens, [HOOK])[HOOK]

        def replaced(make):
            return {HOOK: lambda a: torch.cat([a[:, :1], make(a[:, 1:])], dim=1)}

        clean += float(tiny_model.run(tokens).loss.double().sum())
        zero += float(tiny_model.run(tokens, replaced(torch.zeros_like)).loss.double().sum())
        splice = replaced(lambda a: saved.dictionary(a[0])[None])
        spliced += float(tiny_model.run(tokens, splice).loss.double().sum())
        rows.append(activations[0, 1:])
    config = CoreConfig(n_tokens=n_tokens, batch_contexts=5, device="cpu")
    found = measure_losses(tiny_model, spec, [saved], [torch.zeros(32)], config)
    assert found.n_positions == sum(tokens.shape[1] - 1 for tokens in contexts)
    assert float(found.clean.sum()) == pytest.approx(clean, rel=1e-5)
    assert float(found.zero_ablation.sum()) == pytest.approx(zero, rel=1e-5)
    assert float(found.spliced[0].sum()) == pytest.approx(spliced, rel=1e-5)
    measured = measure_rows(tiny_model, spec, [saved], config, torch.device("cpu"))
    assert measured.n_tokens == sum(tokens.shape[1] for tokens in contexts)
    assert measured.excluded["padding"] == n_tokens - measured.n_tokens
    mean = torch.cat(rows).double().mean(0)
    torch.testing.assert_close(measured.mean(), mean, rtol=1e-5, atol=1e-6)
