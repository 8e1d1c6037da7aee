"""Sites on a tiny model with shared key/value heads: gathering, and patching that is exact."""

from __future__ import annotations

import random

import pytest
import torch

from saelab.config import to_plain
from saelab.errors import ArtifactError, ConfigError, ModelError
from saelab.evals.supervised.circuit import cross_sections_of, find_circuit, find_sites
from saelab.evals.supervised.contenders import save_supervised
from saelab.evals.supervised.dictionaries import Design, SupervisedDictionary, fit_supervised
from saelab.evals.supervised.section import (
    base_accuracy,
    coverage,
    cramers_v,
    dependence,
    require_able,
    strong_pairs,
)
from saelab.evals.supervised.sites import (
    CrossSection,
    PromptSite,
    check_sites,
    gather,
    head_slice,
    key_value_head,
    patched_outcomes,
    prepared_batches,
    read_cross_sections,
    residual_cross_sections,
    site_width,
    write_cross_sections,
)
from saelab.evals.supervised.tasks import (
    CrossSectionTemplate,
    Prompt,
    Role,
    Task,
    padded_tokens,
    positions_of,
)
from saelab.formats.files import read_json

SITES = [
    PromptSite("z", 1, 3, "end"),
    PromptSite("z", 1, 0, "end"),
    PromptSite("q", 2, 1, "end"),
    PromptSite("k", 1, 1, "word"),
    PromptSite("v", 2, 0, "word"),
    PromptSite("resid_pre", 2, None, "end"),
    PromptSite("attn_out", 1, None, "word"),
    PromptSite("mlp_out", 1, None, "end"),
    PromptSite("resid_post", 1, None, "word"),
]


def build(labels, meta):
    """Prompts of several lengths with the word at several places."""
    word, number = int(labels["word"]), int(labels["number"])
    before = int(meta["before"])
    tokens = (0, *range(50, 50 + before), 100 + word, 150 + number, *range(60, 62 + before % 2))
    right = 200 + word
    return Prompt(
        tokens=tokens,
        labels=labels,
        positions={"word": 1 + before, "number": 2 + before, "end": len(tokens) - 1},
        correct=(right,),
        incorrect=(200 + (word + 1) % 4,),
        meta=meta,
    )


def sample(n, split, seed):
    draw = random.Random(f"{split} {seed}")
    return [
        build(
            {"word": str(draw.randrange(4)), "number": str(draw.randrange(3))},
            {"before": str(draw.randrange(4))},
        )
        for _ in range(n)
    ]


def counterfactual(prompt, changes, draw):
    sizes = {"word": 4, "number": 3}
    labels = dict(prompt.labels)
    for name, value in changes.items():
        left = [str(v) for v in range(sizes[name]) if str(v) != labels[name]]
        labels[name] = value or draw.choice(left)
    return build(labels, prompt.meta)


@pytest.fixture(scope="module")
def task():
    return Task(
        name="toy",
        title="say the word again",
        attributes={"word": ("0", "1", "2", "3"), "number": ("0", "1", "2")},
        positions=("word", "number", "end"),
        answer_tokens=tuple(range(200, 204)),
        sample=sample,
        counterfactual=counterfactual,
        edits=(("word",),),
        roles=(
            Role(name="reader", edit=("word",), position="end", n_heads=3),
            Role(name="other", edit=("word",), position="word", n_heads=2, not_in=("reader",)),
        ),
        cross_sections=(
            CrossSectionTemplate(
                name="out", roles=("reader",), parts=(("z", "end"),), edits=(("word",),)
            ),
            CrossSectionTemplate(
                name="qk",
                roles=("reader", "other"),
                parts=(("q", "end"), ("k", "word")),
                edits=(("word",),),
            ),
        ),
    )


@pytest.fixture(scope="module")
def prompts(task):
    return task.sample(23, "train", 0)


def whole_run(model, prompts, edits):
    """The logits at the end from a full pass over the padded prompts, hook by hook."""
    rows = torch.arange(len(prompts))
    splice = {}
    for site, values in edits.items():
        before = splice.get(site.hook_point)

        def change(x, site=site, values=values, inner=before):
            x = (x if inner is None else inner(x)).clone()
            x[..., head_slice(model, site)][rows, positions_of(prompts, site.position)] = values
            return x

        splice[site.hook_point] = change
    logits = model.run(padded_tokens(prompts), splice).logits
    return logits[rows, positions_of(prompts, "end")]


def patched(model, prompts, sites, edits, batch_prompts=7):
    logits = torch.empty(len(prompts), model.d_vocab)
    for batch in prepared_batches(model, prompts, sites, batch_prompts=batch_prompts):
        logits[batch.rows] = batch.logits({site: x[batch.rows] for site, x in edits.items()})
    return logits


def test_gather_takes_each_prompts_own_position_and_head(tiny_model, prompts):
    found = gather(tiny_model, prompts, SITES, batch_prompts=5)
    for site, x in found.items():
        assert x.shape == (len(prompts), site_width(tiny_model, site))
        for row, prompt in enumerate(prompts):
            alone = tiny_model.capture(torch.tensor([prompt.tokens]), [site.hook_point])
            expected = alone[site.hook_point][0, prompt.positions[site.position]]
            if site.head is not None:
                expected = expected.reshape(-1, tiny_model.d_head)[site.head]
            torch.testing.assert_close(x[row], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("site", [[site] for site in SITES] + [SITES[:5]], ids=str)
def test_a_patched_run_is_the_full_patched_run(tiny_model, prompts, site):
    generator = torch.Generator().manual_seed(0)
    edits = {
        one: torch.randn(len(prompts), site_width(tiny_model, one), generator=generator)
        for one in site
    }
    full = whole_run(tiny_model, prompts, edits)
    torch.testing.assert_close(
        patched(tiny_model, prompts, SITES, edits), full, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        patched(tiny_model, prompts, site, edits), full, atol=1e-4, rtol=1e-4
    )
    assert (full - whole_run(tiny_model, prompts, {})).abs().max() > 0.01


def test_patching_clean_values_gives_the_clean_logits(tiny_model, prompts):
    clean = whole_run(tiny_model, prompts, {})
    values = gather(tiny_model, prompts, SITES)
    torch.testing.assert_close(patched(tiny_model, prompts, SITES, {}), clean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        patched(tiny_model, prompts, SITES, values), clean, atol=1e-4, rtol=1e-4
    )
    # Runs leave nothing behind: a patched one between two clean ones changes neither.
    batch = next(iter(prepared_batches(tiny_model, prompts, SITES)))
    before = batch.logits({})
    batch.logits({site: torch.zeros_like(x)[batch.rows] for site, x in values.items()})
    assert torch.equal(before, batch.logits({}))


def test_models_that_cannot_start_in_the_middle_are_run_whole(tiny_gpt2, prompts):
    # GPT-2 has queries, keys and values in one module, so only the bridge can patch them.
    sites = [
        PromptSite("q", 1, 2, "end"),
        PromptSite("k", 1, 2, "word"),
        PromptSite("z", 0, 1, "end"),
    ]
    edits = {site: torch.ones(len(prompts), tiny_gpt2.d_head) for site in sites}
    torch.testing.assert_close(
        patched(tiny_gpt2, prompts, sites, edits),
        whole_run(tiny_gpt2, prompts, edits),
        atol=1e-4,
        rtol=1e-4,
    )


def test_edits_at_several_layers_are_all_from_the_clean_run(tiny_model, prompts):
    """The first edit reaches the second site, whose value is replaced all the same."""
    first, second = (
        PromptSite("resid_post", 0, None, "end"),
        PromptSite("resid_post", 1, None, "end"),
    )
    clean = gather(tiny_model, prompts, [first, second])
    edits = {first: clean[first] + 5, second: clean[second]}
    torch.testing.assert_close(
        patched(tiny_model, prompts, [first, second], edits),
        whole_run(tiny_model, prompts, {}),
        atol=1e-4,
        rtol=1e-4,
    )


def test_outcomes_are_in_the_order_of_the_prompts(tiny_model, task, prompts):
    site = PromptSite("resid_post", 1, None, "end")
    targets = [counterfactual(prompt, {"word": None}, random.Random(1)) for prompt in prompts]
    values = gather(tiny_model, targets, [site])
    found = patched_outcomes(
        tiny_model,
        task,
        prompts,
        {"clean": {}, "truth": values},
        targets=targets,
        reference="truth",
        batch_prompts=4,
    )
    logits = whole_run(tiny_model, prompts, values)
    clean = whole_run(tiny_model, prompts, {})
    assert found["truth"].prediction.tolist() == logits.argmax(-1).tolist()
    expected = torch.stack(
        [x[p.correct[0]] - x[p.incorrect[0]] for x, p in zip(logits, prompts, strict=True)]
    )
    torch.testing.assert_close(found["truth"].metric, expected, atol=1e-4, rtol=1e-4)
    aimed = torch.stack(
        [x[p.correct[0]] - x[p.incorrect[0]] for x, p in zip(logits, targets, strict=True)]
    )
    assert found["truth"].target_metric is not None
    torch.testing.assert_close(found["truth"].target_metric, aimed, atol=1e-4, rtol=1e-4)
    assert (
        found["clean"].answer_prediction.tolist() == (clean[:, 200:204].argmax(-1) + 200).tolist()
    )
    p = logits.log_softmax(-1)
    kl = (p.exp() * (p - clean.log_softmax(-1))).sum(-1)
    assert found["clean"].kl is not None
    torch.testing.assert_close(found["clean"].kl, kl, atol=1e-4, rtol=1e-3)
    assert float(found["truth"].kl.abs().max()) < 1e-6


def test_sites_are_written_and_read_as_text(tmp_path, tiny_model, task):
    for site in SITES:
        assert PromptSite.parse(str(site)) == site
    for text in ("z.1@end", "resid_post.1.2@end", "y.1.1@end", "z.1.1", ""):
        with pytest.raises(ConfigError):
            PromptSite.parse(text)
    sections = [CrossSection("out", tuple(SITES[:2]), (("word",),))]
    write_cross_sections(tmp_path / "sites.json", sections, model="m", task="toy")
    assert read_cross_sections(tmp_path / "sites.json", task="toy") == sections
    with pytest.raises(ArtifactError, match="sites of task 'toy', not of 'ioi'"):
        read_cross_sections(tmp_path / "sites.json", task="ioi")
    made = residual_cross_sections("blocks.1.hook_resid_post", task.positions, task.edits)
    assert [str(section.sites[0]) for section in made] == [
        "resid_post.1@word",
        "resid_post.1@number",
        "resid_post.1@end",
    ]
    with pytest.raises(ConfigError, match="has no residual site"):
        residual_cross_sections("blocks.1.attn.hook_z", task.positions, task.edits)


def test_sites_that_are_not_there_are_refused(tiny_model, task):
    with pytest.raises(ModelError, match="blocks 0 to 2"):
        check_sites(tiny_model, task.positions, [PromptSite("z", 3, 0, "end")])
    with pytest.raises(ModelError, match="2 key/value heads"):
        check_sites(tiny_model, task.positions, [PromptSite("k", 0, 2, "end")])
    with pytest.raises(ConfigError, match="no position 'io'"):
        check_sites(tiny_model, task.positions, [PromptSite("z", 0, 0, "io")])
    with pytest.raises(ConfigError, match="given twice"):
        check_sites(tiny_model, task.positions, [SITES[0], SITES[0]])
    with pytest.raises(ConfigError, match="no site was given"):
        check_sites(tiny_model, task.positions, [])
    assert [key_value_head(tiny_model, head) for head in range(4)] == [0, 0, 1, 1]


def test_the_circuit_search_patches_every_head_alone(tiny_model, task, tmp_path):
    config = {"n_prompts": 11, "least_effect": 0.0}
    # The tiny model answers at random: shift the metric so that its mean is positive.
    shifted = Task(
        **{**vars(task), "metric": lambda logits, prompts: task.metric(logits, prompts) + 5}
    )
    circuit = find_circuit(tiny_model, shifted, **config)
    prompts = task.sample(11, "train", 0)
    from saelab.evals.supervised.tasks import counterfactual_pairs

    _, targets = counterfactual_pairs(task, prompts, ("word",), 0)
    clean = float(shifted.metric(whole_run(tiny_model, prompts, {}), prompts).mean())
    assert circuit.clean_metric == pytest.approx(clean, rel=1e-4)
    for one in circuit.roles:
        for layer, head in [(0, 0), (1, 3), (2, 2)]:
            site = PromptSite("z", layer, head, one.position)
            logits = whole_run(tiny_model, prompts, gather(tiny_model, targets, [site]))
            effect = 1 - float(shifted.metric(logits, prompts).mean()) / clean
            assert one.effects[layer][head] == pytest.approx(effect, abs=1e-4)
    reader, other = circuit.roles
    assert len(reader.heads) == 3
    assert not set(reader.heads) & set(other.heads)
    sizes = [abs(reader.effects[layer][head]) for layer, head in reader.heads]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == pytest.approx(max(abs(effect) for row in reader.effects for effect in row))
    find_sites(tmp_path / "sites.json", tiny_model, shifted, **config)
    assert read_json(tmp_path / "sites.circuit.json")["circuit"] == to_plain(circuit)


def test_cross_sections_share_key_heads_and_leave_out_empty_ones(tiny_model, task):
    sections = cross_sections_of(tiny_model, task, {"reader": [(1, 0), (1, 1)], "other": []})
    assert [str(site) for site in sections[0].sites] == ["z.1.0@end", "z.1.1@end"]
    assert [str(site) for site in sections[1].sites] == ["k.1.0@word", "q.1.0@end", "q.1.1@end"]
    assert [s.name for s in cross_sections_of(tiny_model, task, {"other": [(0, 0)]})] == ["qk"]


def test_checks_of_a_task(tiny_model, task, prompts):
    found = coverage(task, prompts)
    assert min(found["word"].values()) == min(
        sum(prompt.labels["word"] == value for prompt in prompts) for value in "0123"
    )
    with pytest.raises(ConfigError, match="values of 'word' have no example among 1 prompts"):
        coverage(task, prompts[:1])
    accuracy = base_accuracy(tiny_model, task, prompts)
    logits = whole_run(tiny_model, prompts, {})
    assert accuracy["share with a positive metric"] == pytest.approx(
        float((task.metric(logits, prompts) > 0).float().mean())
    )
    with pytest.raises(ModelError, match="prefers the right answer in"):
        require_able(tiny_model, task, accuracy)


def test_dependence_of_labels():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(60, (5000,), generator=generator)
    b = torch.randint(60, (5000,), generator=generator)
    table = torch.zeros(60, 60).index_put_((a, b), torch.ones(5000), accumulate=True)
    assert cramers_v(table) < 0.05
    assert cramers_v(torch.diag(torch.full((5,), 20.0))) == pytest.approx(1.0, abs=1e-6)
    assert cramers_v(torch.tensor([[3.0], [4.0]])) == 0
    assert strong_pairs({("a", "b"): 0.5, ("a", "c"): 0.01}) == [("a", "b")]


def test_dependence_of_a_task(task):
    values = dependence(task, task.sample(500, "train", 0))
    assert set(values) == {("word", "number")}
    assert values["word", "number"] < 0.1


def test_a_supervised_dictionary_is_saved_as_a_dictionary(tiny_model, task, tmp_path):
    prompts = task.sample(200, "train", 0)
    site = PromptSite("v", 0, 1, "word")
    x = gather(tiny_model, prompts, [site])
    fitted = fit_supervised(task, prompts, x)[site]
    folder = tmp_path / "saved"
    save_supervised(
        folder, fitted, model=tiny_model, task=task, site=site, prompts=prompts, activations=x[site]
    )
    from saelab.commands.info import describe
    from saelab.dictionary import load_dictionary

    saved = load_dictionary(folder)
    assert torch.equal(saved.dictionary.W_dec, fitted.W_dec)
    assert torch.equal(saved.dictionary.b_dec, fitted.bias)
    # The word decides the value there, so the encoder finds it without labels.
    active = saved.dictionary.encode_dense(x[site]) > 0
    truth = fitted.codes([prompt.labels for prompt in prompts]) > 0
    assert torch.equal(active[:, :4], truth[:, :4])
    assert any("v.0.1@word" in line for line in describe(folder))
    # The manifest says which row of the decoder each label has.
    training = saved.manifest["config"]
    attributes = {name: tuple(values) for name, values in training["attributes"].items()}
    back = SupervisedDictionary(
        training["kind"],
        Design(attributes, training["nested"]),
        saved.dictionary.W_dec,
        saved.dictionary.b_dec,
        torch.tensor(training["counts"]),
    )
    labels = [prompt.labels for prompt in prompts]
    torch.testing.assert_close(back.reconstruct(labels), fitted.reconstruct(labels))
    assert back.kind == "mse"
    assert torch.equal(back.counts, fitted.counts)


def test_suites_that_read_decoders_read_a_supervised_dictionary(tiny_model, task, tmp_path):
    from saelab.evals.consistency.suite import ConsistencyConfig, run_consistency
    from saelab.evals.core.config import CoreConfig
    from saelab.evals.core.suite import run_core

    site = PromptSite("resid_post", 1, None, "word")
    folders = []
    for kind in ("mean", "mse"):
        prompts = task.sample(200, "train", 0)
        x = gather(tiny_model, prompts, [site])
        fitted = fit_supervised(task, prompts, x, kind=kind)[site]
        folders.append(tmp_path / kind)
        save_supervised(
            folders[-1],
            fitted,
            model=tiny_model,
            task=task,
            site=site,
            prompts=prompts,
            activations=x[site],
        )
    config = ConsistencyConfig(activity=False, across=True, out=tmp_path / "out")
    results = run_consistency(folders, config)
    assert len(results) == 2
    # Their codes need task prompts: text would say nothing about them.
    with pytest.raises(ArtifactError, match="does not record its text"):
        run_core(folders, CoreConfig(out=tmp_path / "core"))
