"""Crosscoders over two models, and which of their latents are shared or dedicated."""

import shutil

import numpy as np
import pyarrow.parquet
import pytest
import torch

from saelab.cache.aligned import AlignedCaches, open_caches
from saelab.cache.config import HarvestConfig
from saelab.cache.reader import open_cache
from saelab.cache.writer import write_caches
from saelab.cli import main
from saelab.dictionary import Dictionary, Site, load_dictionary
from saelab.errors import ActivationError, ConfigError
from saelab.evals.crosscoder.scaling import HookPointSums
from saelab.evals.crosscoder.suite import CrosscoderConfig, run_crosscoder
from saelab.stats.metrics import fvu
from saelab.training.config import OptimizerConfig, TrainConfig
from saelab.training.methods import MethodOptions
from saelab.training.methods.mutual_choice import MutualChoiceOptions
from saelab.training.run import train

HOOK = "blocks.1.hook_resid_post"
BOTH = (f"base/{HOOK}", f"chat/{HOOK}")


@pytest.fixture(scope="module")
def harvest(model_text):
    def of(model, **changes):
        settings = {
            "model": str(model),
            "hook_points": (HOOK,),
            "text": model_text,
            "context_length": 32,
            "n_tokens": 2048,
            "batch_contexts": 8,
            "contexts_per_shard": 24,
            "model_dtype": "float32",
            "cache_dtype": "float32",
            "device": "cpu",
        }
        return HarvestConfig(**settings | changes)

    return of


@pytest.fixture(scope="module")
def copies(tiny_model_folder, harvest, tmp_path_factory):
    """Caches of the tiny model, and of a copy of it under another name."""
    folder = tmp_path_factory.mktemp("pair")
    shutil.copytree(tiny_model_folder, folder / "copy")
    write_caches(folder / "caches" / "base", harvest(tiny_model_folder))
    write_caches(folder / "caches" / "chat", harvest(folder / "copy"))
    return folder / "caches"


def config_of(cache, out, site, **changes):
    settings = {
        "out": out,
        "cache": cache,
        "reads": site,
        "writes": site,
        "d_sae": (48,),
        "k": (6,),
        "n_tokens": 256 * 100,
        "batch_rows": 256,
        "device": "cpu",
        "product_dtype": "float32",
        "optimizer": OptimizerConfig(learning_rate=5e-3),
    }
    return TrainConfig(**settings | changes)


def dictionary_of(run, out):
    (name,) = run["dictionaries"]
    return out / "dictionaries" / name


def values_of(folder, **settings):
    (result,) = run_crosscoder([folder], CrosscoderConfig(device="cpu", **settings))
    return {metric.name: metric.value for metric in result.metrics}


def test_sums_equal_brute_force_in_float64():
    torch.manual_seed(0)
    widths, d_sae, n = (6, 6, 4), 20, 200
    total = sum(widths)
    dictionary = Dictionary(
        "topk",
        W_enc=torch.randn(total, d_sae).double(),
        W_dec=torch.randn(d_sae, total).double() * torch.tensor([1.0] * 6 + [3.0] * 6 + [0.2] * 4),
        b_enc=torch.randn(d_sae).double(),
        b_dec=torch.randn(total).double(),
        k=4,
    )
    x = torch.randn(n, total).double() * 2
    sums = HookPointSums(dictionary, widths)
    for part in x.split(70):
        sums.update(part, part)
    f = dictionary.encode_dense(x)
    parts, hats = x.split(widths, 1), (f @ dictionary.W_dec).split(widths, 1)
    biases, decoders = dictionary.b_dec.split(widths), dictionary.W_dec.split(widths, 1)
    spread = [(p - p.mean(0)).square().sum(1).mean().sqrt() for p in parts]
    norms = torch.stack([d.norm(dim=1) / s for d, s in zip(decoders, spread, strict=True)])
    torch.testing.assert_close(sums.relative_norms(), norms / norms.amax(0))
    strongest = norms.argmax(0)
    nu_error, nu_reconstruction = sums.nu(strongest)
    for j in range(d_sae):
        m = int(strongest[j])
        direction = decoders[m][j] / spread[m]
        scaled = {"error": [], "reconstruction": []}
        for h in range(3):
            if widths[h] != widths[m]:
                scaled["error"].append(torch.nan)
                scaled["reconstruction"].append(torch.nan)
                continue
            latent = f[:, j : j + 1] * decoders[h][j]
            error = parts[h] - hats[h] - biases[h] + latent
            column = (f[:, j : j + 1] * direction).flatten()
            for name, y in (("error", error), ("reconstruction", hats[h])):
                target = (y / spread[h]).flatten()
                scaled[name].append(float(target @ column / (column @ column)))
        for name, nu in (("error", nu_error), ("reconstruction", nu_reconstruction)):
            beta = torch.tensor(scaled[name], dtype=torch.float64)
            expected = beta / beta[m] if beta[m] > 0 else torch.full_like(beta, torch.nan)
            torch.testing.assert_close(nu[:, j], expected, equal_nan=True, rtol=1e-8, atol=1e-8)


@pytest.fixture(scope="module")
def of_copies(copies, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return dictionary_of(train(config_of(copies, out, BOTH, methods=("batch_topk",))), out)


def test_a_crosscoder_over_two_copies_of_a_model_finds_all_latents_shared(of_copies, copies):
    saved = load_dictionary(of_copies)
    assert saved.site == Site(BOTH, BOTH)
    assert [*saved.made_from["models"]] == ["base", "chat"]
    values = values_of(of_copies, n_tokens=1024)
    assert values["shared_share"] == 1 and values["dedicated_latents"] == 0
    assert values["shared_cosine"] > 0.9 and values["n_alive"] > 20
    assert values[f"fvu_at_{BOTH[0]}"] == pytest.approx(values[f"fvu_at_{BOTH[1]}"], rel=0.05)


def test_what_is_saved_of_two_models_opens_everywhere(of_copies, capsys):
    folder, fast = str(of_copies), ["--n-tokens", "512", "--device", "cpu"]
    assert main(["info", folder]) == 0
    assert main(["eval", "core", folder, *fast]) == 0
    assert main(["features", folder, *fast]) == 0
    assert "chat/blocks.1" in capsys.readouterr().out
    assert main(["eval", "consistency", folder, folder, *fast]) == 2
    capsys.readouterr()
    assert main(["eval", "steering", folder, *fast]) == 2
    assert main(["eval", "core", folder, *fast, "--model", "elsewhere", "--overwrite"]) == 2
    refused = capsys.readouterr().err.strip().splitlines()
    assert len(refused) == 2 and "is of several models (base, chat)" in refused[1]


def test_only_rows_that_both_models_keep_are_read(harvest, tiny_model_folder, copies, tmp_path):
    """Norm ceilings leave other rows out of each cache; statistics are of what is read."""
    shutil.copytree(copies.parent / "copy", tmp_path / "copy")
    ceiling = {"rows": harvest("x").rows.__class__(max_norm_ratio=1.1)}
    scale_embeddings(tmp_path / "copy", rows=range(40, 90))
    for label, model in (("base", tiny_model_folder), ("chat", tmp_path / "copy")):
        write_caches(tmp_path / label, harvest(model, **ceiling))
    site = Site(BOTH, BOTH)
    caches = open_caches(tmp_path, site)
    base, chat = (open_cache(tmp_path / label, HOOK) for label in ("base", "chat"))
    rows = [c.rows(torch.arange(c.n_rows), with_context=True) for c in (base, chat)]
    keys = [(r.sequence * 32 + r.position).tolist() for r in rows]
    common = sorted(set(keys[0]) & set(keys[1]))
    assert len(common) < min(len(keys[0]), len(keys[1])) and caches.n_rows == len(common)
    expected = torch.cat(
        [r.activations[[k.index(c) for c in common]] for r, k in zip(rows, keys, strict=True)], 1
    )
    torch.testing.assert_close(caches.rows(torch.arange(len(common))).activations, expected)
    statistics = caches.statistics
    torch.testing.assert_close(statistics.mean, expected.mean(0), rtol=1e-4, atol=1e-5)
    centred = (expected.double() - expected.double().mean(0)).square().sum(1).mean()
    assert statistics.centred_mean_squared_norm == pytest.approx(float(centred), rel=1e-6)
    assert caches.excluded["norm_at:other models"] == base.n_rows - len(common)


def scale_embeddings(folder, rows):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.embed_tokens.weight[list(rows)] *= 1.5
    model.save_pretrained(folder)


def test_what_does_not_align_is_refused_in_a_line(
    copies, harvest, tiny_model_folder, tiny_gpt2_folder, tmp_path
):
    site = Site(BOTH, BOTH)
    with pytest.raises(ActivationError, match="holds no folder 'chat'"):
        open_caches(copies / "base", Site((f"chat/{HOOK}",), (f"chat/{HOOK}",)))
    base = open_cache(copies / "base", HOOK)
    for changes, words in (
        ({"n_tokens": 1024}, "differ in n_contexts.*same `saelab cache` options but --model"),
        ({"context_length": 64}, "differ in context_length"),
        ({"text": harvest("x").text.__class__(source=harvest("x").text.source, seed=5)}, "token"),
    ):
        folder = tmp_path / next(iter(changes))
        (written,) = write_caches(folder, harvest(tiny_model_folder, **changes))
        with pytest.raises(ActivationError, match=words):
            AlignedCaches(dict(zip(BOTH, (base, open_cache(written)), strict=True)), site)
    (written,) = write_caches(tmp_path / "gpt2", harvest(tiny_gpt2_folder))
    with pytest.raises(ActivationError, match="models of different tokenizers"):
        AlignedCaches(dict(zip(BOTH, (base, open_cache(written)), strict=True)), site)
    with pytest.raises(ConfigError, match="without a cache: give the folder"):
        config_of(None, tmp_path, BOTH)
    with pytest.raises(ConfigError, match=r"at each \(label/hook point\), or at none"):
        Site((HOOK, BOTH[0]), (HOOK,))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Sparse mixtures of 24 directions at "base"; the same and one direction more at "chat"."""
    folder = tmp_path_factory.mktemp("planted")
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(25, 16))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    codes = (generator.random((6000, 25)) < 0.08) * generator.uniform(1, 2, (6000, 25))
    base = codes[:, :24] @ directions[:24]
    np.savez(folder / "pair.npz", base=base, chat=base + 2 * codes[:, 24:] @ directions[24:])
    assert main(["cache", "adopt", str(folder / "pair.npz"), "--out", str(folder / "caches")]) == 0
    return folder / "caches", directions[24]


@pytest.mark.parametrize(
    ("norm", "k"), [("joint", 2), pytest.param("summed", 3, marks=pytest.mark.slow)]
)
def test_a_planted_direction_is_the_one_dedicated_latent_confirmed(planted, norm, k, tmp_path):
    caches, direction = planted
    options = MethodOptions(batch_topk=MutualChoiceOptions(decoder_norm=norm))
    config = config_of(
        caches,
        tmp_path,
        ("base", "chat"),
        methods=("batch_topk",),
        d_sae=(32,),
        k=(k,),
        n_tokens=256 * 250,
        options=options,
    )
    folder = dictionary_of(train(config), tmp_path)
    values = values_of(folder, n_tokens=1024)
    assert values["confirmed_at_chat"] == 1 and values["confirmed_at_base"] == 0
    table = pyarrow.parquet.read_table(folder / "evals" / "crosscoder_latents.parquet").to_pydict()
    (latent,) = [i for i, confirmed in enumerate(table["confirmed"]) if confirmed]
    decoder = load_dictionary(folder).dictionary.W_dec[latent].double()
    cosine = decoder[16:] @ torch.tensor(direction) / decoder[16:].norm()
    assert cosine > 0.95 and table["strongest"][latent] == "chat"
    assert values["shared_share"] > 0.8
    assert fvu(*rows_and_reconstruction(caches, folder)) < 0.3


def rows_and_reconstruction(caches, folder):
    rows = open_caches(caches, Site(("base", "chat"), ("base", "chat")))
    x = rows.rows(torch.arange(rows.n_rows)).activations
    return x, load_dictionary(folder).dictionary(x)


def test_an_sae_is_refused(tiny_model_folder, harvest, copies, tmp_path, capsys):
    run = train(
        TrainConfig(
            out=tmp_path,
            cache=copies / "base",
            d_sae=(32,),
            k=(4,),
            n_tokens=512,
            batch_rows=256,
            device="cpu",
        )
    )
    assert main(["eval", "crosscoder", str(dictionary_of(run, tmp_path))]) == 2
    error = capsys.readouterr().err
    assert "this needs a crosscoder" in error and error.count("\n") == 1
