"""Reading, attributing and steering with a tiny model, against literal computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saelab.dictionary.reference import reference_codes
from saelab.errors import ArtifactError, ConfigError, ModelError
from saelab.live.edits import FeatureEdit, next_token_shift
from saelab.live.lock import FairLock
from saelab.live.session import BASELINE, STEERED, LiveSession, SharedModel

from .conftest import GPT2_HOOK, HOOK, random_dictionary, save_for

TEXT = "the king met the queen at the old mill"
HOSTILE = [
    "<script>alert(1)</script>",
    "🙂🙃 e\u0301 \u200b",
    "שלום עולם مرحبا",
    "line\nbreak\ttab \"quotes\" 'single' &amp;",
    "<|endoftext|><|bos|>",
    "\ud800 lone surrogate",
]


def dense_codes(session, tokens):
    """Codes by the float64 reference of what the model holds, all positions."""
    model = session.model
    x = model.capture(torch.tensor(tokens)[None], [HOOK])[HOOK][0]
    return reference_codes(session.saved.dictionary, x.float())


def test_reading_has_the_dictionarys_codes_where_positions_count(session, tiny_model):
    reading = session.read(TEXT, 100)
    assert reading.ids == [tiny_model.bos_id, *tiny_model.tokenize([TEXT])[0]]
    assert not reading.counted[0] and reading.counted[1:].all()
    assert reading.excluded == {"bos": 1}
    expected = dense_codes(session, reading.ids)
    found = torch.zeros_like(expected)
    found[reading.position, reading.latent] = torch.from_numpy(reading.value)
    expected[0] = 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (np.diff(reading.position) >= 0).all() and (reading.value > 0).all()
    part = reading.at(3)
    assert set(reading.latent[part]) == set(expected[3].nonzero().flatten().tolist())
    latent = int(reading.latent[0])
    assert reading.track(latent) == pytest.approx(expected[:, latent].tolist(), abs=1e-4)


@pytest.mark.parametrize("text", HOSTILE)
def test_any_text_is_read_as_plain_text(session, tiny_model, text):
    reading = session.read(text, 100)
    assert reading.ids[0] == tiny_model.bos_id
    assert not set(reading.ids[1:]) & tiny_model.special_ids
    assert reading.counted[1:].all()


def test_text_is_cut_at_the_cap_and_says_so(session):
    whole = session.read(TEXT, 100)
    cut = session.read(TEXT, 4)
    assert cut.ids == whole.ids[:4]
    assert cut.n_cut == len(whole.ids) - 4
    assert session.read("a" * 5000, 10_000).n_cut > 0


@pytest.mark.parametrize("call", ["read", "attribute", "steer"])
def test_empty_text_is_refused_in_words(session, call):
    with pytest.raises(ConfigError, match="the text is empty: type a word or more"):
        match call:
            case "read":
                session.read("", 10)
            case "attribute":
                session.attribute("", 5, "logit", 10)
            case "steer":
                session.steer("", [], n_tokens=1, temperature=0, seed=0, max_tokens=10)


@pytest.mark.parametrize("quantity", ["logit", "log_probability"])
def test_gradients_of_a_next_token_are_finite_differences(double_model, quantity):
    tokens = torch.tensor(double_model.tokenize([TEXT])[0])
    target = 42
    x, gradient, value = double_model.next_token_gradients(tokens, GPT2_HOOK, target, quantity)

    def at(change):
        logits = double_model.run(tokens[None], {GPT2_HOOK: lambda h: h + change}).logits[0, -1]
        return float((logits if quantity == "logit" else logits.log_softmax(0))[target])

    assert at(torch.zeros_like(x)) == pytest.approx(value, abs=1e-9)
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        step = 1e-4
        slope = (at(step * direction) - at(-step * direction)) / (2 * step)
        assert slope == pytest.approx(float((gradient * direction).sum()), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("normalisation", ["none", "constant_norm_rescale", "layer_norm", "center"])
def test_attribution_is_the_slope_of_scaling_a_features_part(double_model, tmp_path, normalisation):
    dictionary = random_dictionary(input_normalisation=normalisation)
    live = LiveSession(
        SharedModel(double_model, FairLock()),
        save_for(double_model, tmp_path / "d", dictionary, hook_point=GPT2_HOOK),
    )
    target = 17
    found = live.attribute(TEXT, target, "logit", 100)
    reading = found.reading
    tokens = torch.tensor(reading.ids)[None]
    x = double_model.capture(tokens, [GPT2_HOOK])[GPT2_HOOK][0]
    scales = {"constant_norm_rescale": x.norm(dim=1) / 32**0.5, "layer_norm": x.std(dim=1)}
    scale = scales.get(normalisation, torch.ones(len(x)))
    decoder = dictionary.W_dec.double()
    for pair in range(0, len(reading.latent), 7):
        position, latent = reading.position[pair], reading.latent[pair]
        part = torch.zeros_like(x)
        part[position] = reading.value[pair] * scale[position] * decoder[latent]
        step = 1e-4
        ups, downs = (
            float(
                double_model.run(
                    tokens, {GPT2_HOOK: lambda h, s=s, part=part: h + s * part}
                ).logits[0, -1, target]
            )
            for s in (step, -step)
        )
        assert found.pair[pair] == pytest.approx((ups - downs) / (2 * step), rel=1e-3, abs=1e-6)
    # All parts together are gradient · activation.
    _, gradient, value = double_model.next_token_gradients(tokens[0], GPT2_HOOK, target, "logit")
    total = found.pair.sum() + found.bias + found.error + found.left_out
    assert total == pytest.approx(float((gradient * x).sum()), rel=1e-6)
    assert found.value == pytest.approx(value)
    latent, sums = found.by_feature()
    assert sums.sum() == pytest.approx(found.pair.sum())
    assert found.by_position().sum() == pytest.approx(found.pair.sum())
    pairs = reading.latent == latent[0]
    assert found.pair[pairs].sum() == pytest.approx(sums[0])


def collected(steps):
    steps = list(steps)
    return torch.stack([step.tokens for step in steps], 1).tolist(), steps


def steer(session, edits, **options):
    settings = {"n_tokens": 8, "temperature": 0.8, "seed": 5, "max_tokens": 50, **options}
    return collected(session.steer(TEXT, edits, **settings))


def test_without_edits_both_versions_are_the_same_and_seeds_decide(session):
    (base, steered), _ = steer(session, [])
    assert base == steered
    assert steer(session, [])[0][BASELINE] == base
    assert steer(session, [], seed=6)[0][BASELINE] != base


def test_a_sweep_is_every_strength_by_itself(session):
    edits = [FeatureEdit(feature=1, kind="add", strength=2.0, maximum=3.0)]
    swept, _ = steer(session, edits, factors=(0.5, 1.0, 4.0))
    for version, factor in enumerate((0.5, 1.0, 4.0), 1):
        alone = [FeatureEdit(feature=1, kind="add", strength=2.0 * factor, maximum=3.0)]
        assert steer(session, alone)[0] == [swept[BASELINE], swept[version]]


def test_perplexity_is_that_of_what_was_written(session, tiny_model):
    written = [5, 9, 2]
    ids = [*session.read(TEXT, 50).ids, *written]
    logits = tiny_model.run(torch.tensor([ids])).logits[0].double()
    losses = [-logits[i - 1].log_softmax(0)[ids[i]] for i in range(len(ids) - 3, len(ids))]
    expected = float(torch.stack(losses).mean().exp())
    assert session.perplexity(TEXT, written, 50) == pytest.approx(expected, rel=1e-5)


def test_the_baseline_is_plain_greedy_generation(session, tiny_model):
    (base, _), _ = steer(session, [FeatureEdit(feature=1, kind="ablate")], temperature=0)
    tokens = session.read(TEXT, 50).ids
    for expected in base:
        assert int(tiny_model.run(torch.tensor([tokens])).logits[0, -1].argmax()) == expected
        tokens = [*tokens, expected]


@pytest.mark.parametrize("from_end", [False, True])
@pytest.mark.parametrize("kind", ["add", "clamp", "ablate"])
def test_steering_is_a_splice_of_the_whole_text(session, tiny_model, kind, from_end):
    reading = session.read(TEXT, 50)
    feature = int(reading.latent[-1])
    edits = [
        FeatureEdit(feature=feature, kind=kind, strength=-1.5, maximum=3.0),
        FeatureEdit(feature=7, kind="add", strength=2, maximum=2.0),
    ]
    (_, steered), steps = steer(session, edits, from_end_of_prompt=from_end, temperature=0)
    dictionary = session.saved.dictionary
    start = len(reading.ids) - 1 if from_end else 1

    def splice(x):
        codes = reference_codes(dictionary, x[0].float())
        change = {"add": -4.5, "clamp": -4.5 - codes[:, feature], "ablate": -codes[:, feature]}
        amount = torch.as_tensor(change[kind]).expand(x.shape[1])
        new = x[0].double() + amount[:, None] * dictionary.W_dec[feature].double()
        new = new + 4.0 * dictionary.W_dec[7].double()
        return torch.cat([x[:, :start], new[None, start:].to(x)], dim=1)

    tokens = reading.ids
    for token, step in zip(steered, steps, strict=True):
        logits = tiny_model.run(torch.tensor([tokens]), {HOOK: splice}).logits[0, -1]
        torch.testing.assert_close(step.logits[STEERED], logits, rtol=1e-3, atol=1e-3)
        assert token == int(logits.argmax())
        tokens = [*tokens, token]


def test_shift_against_literal_float64(session):
    _, steps = steer(session, [FeatureEdit(feature=3, kind="add", strength=3, maximum=2.0)])
    before, after = steps[0].logits
    p, q = (np.exp(v.double().numpy()) for v in (before, after))
    p, q = p / p.sum(), q / q.sum()
    shift = next_token_shift(before, after, 5)
    assert shift.kl == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-4)
    order = np.argsort(q - p)
    assert [token for token, *_ in shift.losing] == order[:5].tolist()
    assert [token for token, *_ in shift.gaining] == order[::-1][:5].tolist()
    assert shift.gaining[0][1:] == pytest.approx((p[order[-1]], q[order[-1]]))
    same = next_token_shift(before, before)
    assert same.kl == 0 and not same.gaining and not same.losing


def test_generation_ends_where_all_versions_ended(session, monkeypatch):
    (base, _), _ = steer(session, [], temperature=0)
    monkeypatch.setattr(session.model, "end_ids", frozenset({base[2]}))
    (shorter, _), steps = steer(session, [], temperature=0)
    stop = base.index(base[2])
    assert shorter == base[: stop + 1]
    assert [bool(step.finished.all()) for step in steps] == [False] * stop + [True]


def test_generation_past_the_context_is_refused(session):
    with pytest.raises(ModelError, match="at most 128"):
        steer(session, [], n_tokens=500)


def test_gpt2_without_bos_reads_from_the_first_token(tiny_gpt2, tmp_path):
    saved = save_for(tiny_gpt2, tmp_path / "d", random_dictionary(), prepend_bos=False)
    live = LiveSession(SharedModel(tiny_gpt2, FairLock()), saved)
    assert live.warnings == []
    reading = live.read(TEXT, 20)
    assert reading.ids == tiny_gpt2.tokenize([TEXT])[0][:20]
    assert not reading.counted[0]
    assert "first token does not count" in live.bos_rule


def test_mismatches_are_said(tiny_model, tmp_path):
    saved = save_for(
        tiny_model, tmp_path / "d", random_dictionary(), model_hash="f" * 64, model_dtype="bfloat16"
    )
    warnings = LiveSession(SharedModel(tiny_model, FairLock()), saved).warnings
    assert "content hash ffffffffffff…" in warnings[0]
    assert "bfloat16 activations" in warnings[1]
    saved = save_for(tiny_model, tmp_path / "e", random_dictionary(), bos_id=7)
    assert (
        "BOS token 7, not 0" in LiveSession(SharedModel(tiny_model, FairLock()), saved).warnings[0]
    )


def test_a_dictionary_that_does_not_fit_is_refused(tiny_model, tmp_path):
    shared = SharedModel(tiny_model, FairLock())
    bare = save_for(tiny_model, tmp_path / "a", random_dictionary(), norm_ceiling="missing")
    with pytest.raises(ArtifactError, match="does not record its norm_ceiling"):
        LiveSession(shared, bare)
    other = save_for(
        tiny_model, tmp_path / "b", random_dictionary(), hook_point="blocks.0.mlp.hook_pre"
    )
    with pytest.raises((ArtifactError, ModelError), match=r"width|hook point"):
        LiveSession(shared, other)


def test_one_token_by_its_text(session, tiny_model):
    id_ = tiny_model.tokenize([" the"])[0]
    assert len(id_) == 1
    assert session.token_of(" the") == id_[0]
    for several in ("treasury of the old river", ""):
        with pytest.raises(ConfigError, match="is not one token"):
            session.token_of(several)


def test_next_tokens_are_the_models(session, tiny_model):
    ids = session.read(TEXT, 50).ids
    probability = tiny_model.run(torch.tensor([ids])).logits[0, -1].double().softmax(0)
    found = session.next_tokens(TEXT, 5, 50)
    assert [id_ for id_, *_ in found] == probability.topk(5).indices.tolist()
    assert found[0][2] == pytest.approx(float(probability.max()))


def test_ten_people_at_once_get_what_one_would(session):
    """Hooks of one pass must not see another's: every result equals that of a lone caller."""
    from concurrent.futures import ThreadPoolExecutor

    texts = [f"{TEXT} {' near' * extra}" for extra in range(5)]
    edits = [FeatureEdit(feature=7, kind="add", strength=3, maximum=2.0)]

    def written(text):
        options = {"n_tokens": 6, "temperature": 0.7, "seed": 1, "max_tokens": 50}
        return collected(session.steer(text, edits, **options))[0]

    def active(text):
        reading = session.read(text, 50)
        return reading.ids, reading.latent.tolist(), reading.value.tolist()

    def attributed(text):
        return session.attribute(text, 5, "logit", 50).pair.tolist()

    jobs = [(work, text) for text in texts for work in (written, active, attributed)]
    alone = [work(text) for work, text in jobs]
    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(lambda job: job[0](job[1]), jobs))
    assert together == alone
    assert session.waiting == 0
