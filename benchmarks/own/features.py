"""What the feature store costs: building at full scale, building from activations, reading a page.

`scale` builds from synthetic sparse codes, so that everything but the language model and the
encoder is timed. `prepare` writes an SAE with activations of planted features for `same` (saelab)
and for `peers.sae_dashboard`, which read the same files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from saelab.dictionary import Dictionary, load_dictionary, save_dictionary
from saelab.features.build import StoreSources, write_store
from saelab.features.reader import FeatureStore
from saelab.features.shards import Shards, ShardText, write_shard
from saelab.features.token_text import Vocabulary
from saelab.model.logit_lens import Lens

CONTEXT = 256
SHARD_CONTEXTS = 256
ZIPF = 0.7
"""Densities fall with rank to this power: from one token in six to one in several thousand."""
PAGES = 500
"""Feature pages read for the percentiles."""


def main() -> None:
    """Run one mode and print one JSON line."""
    parser = argparse.ArgumentParser()
    modes = parser.add_subparsers(dest="mode", required=True)
    for name in ("scale", "prepare", "same"):
        mode = modes.add_parser(name)
        mode.add_argument("--out", type=Path, required=True, help="folder to work in")
        mode.add_argument("--threads", type=int, default=2)
        mode.add_argument("--tokens", type=int, default=1 << 20)
        mode.add_argument("--d-sae", type=int, default=24_576)
        mode.add_argument("--d-in", type=int, default=576)
        mode.add_argument("--vocab", type=int, default=49_152)
        mode.add_argument("--l0", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    run = {"scale": scale, "prepare": prepare, "same": same}[arguments.mode]
    with contextlib.redirect_stdout(sys.stderr):
        result = run(arguments)
    print(json.dumps(result))


def scale(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write synthetic codes (not timed), build the store (timed), read pages of it (timed)."""
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(arguments.d_sae, arguments.d_in, generator=generator)
    unembedding = torch.randn(arguments.vocab, arguments.d_in, generator=generator)
    shards = _synthetic_shards(arguments)
    store = arguments.out / "features.sqlite"
    wall, cpu = time.perf_counter(), time.process_time()
    write_store(store, _sources(shards, _dictionary(decoder, arguments.l0), unembedding))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "seconds": wall,
        "cpu_seconds": cpu,
        "features_per_second": arguments.d_sae / wall,
        "pairs": int(shards.n_active.sum()),
        # Kilobytes on Linux.
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "store_mb": store.stat().st_size / 1e6,
        **_page_times(store),
    }


def prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    """An SAE, and activations that are sums of its decoder rows and some noise."""
    generator = torch.Generator().manual_seed(0)
    decoder = torch.randn(arguments.d_sae, arguments.d_in, generator=generator)
    decoder = torch.nn.functional.normalize(decoder, dim=1)
    n_contexts = arguments.tokens // CONTEXT
    activations = torch.empty(n_contexts, CONTEXT, arguments.d_in)
    rng = np.random.default_rng(0)
    for context in range(n_contexts):
        latent, value = _synthetic_rows(rng, CONTEXT, arguments.d_sae, arguments.l0)
        weights = torch.from_numpy(value)
        rows = torch.nn.functional.embedding_bag(
            torch.from_numpy(latent), decoder, per_sample_weights=weights, mode="sum"
        )
        activations[context] = rows + 0.02 * torch.randn(rows.shape, generator=generator)
    save_dictionary(
        arguments.out / "dictionary",
        _dictionary(decoder, arguments.l0),
        self_test_inputs=activations[0],
        training={"method": "synthetic"},
        made_from={"model": "synthetic", "hook_point": "blocks.0.hook_resid_post"},
    )
    tokens = torch.from_numpy(rng.integers(0, arguments.vocab, (n_contexts, CONTEXT)))
    unembedding = torch.randn(arguments.vocab, arguments.d_in, generator=generator)
    tensors = {"activations": activations, "tokens": tokens, "unembedding": unembedding}
    save_file(tensors, arguments.out / "inputs.safetensors")
    return {}


def same(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything from activations to a store of every feature of the prepared SAE."""
    saved = load_dictionary(arguments.out / "dictionary")
    inputs = load_file(arguments.out / "inputs.safetensors")
    activations, tokens = inputs["activations"], inputs["tokens"].numpy()
    d_sae = saved.dictionary.d_sae
    start = time.perf_counter()
    paths = []
    for first in range(0, len(tokens), SHARD_CONTEXTS):
        rows = activations[first : first + SHARD_CONTEXTS].flatten(0, 1)
        codes = saved.dictionary.encode(rows)
        paths.append(
            _write(
                arguments.out,
                first,
                tokens[first : first + SHARD_CONTEXTS],
                codes.pair_rows().numpy(),
                codes.latent.numpy(),
                codes.value.numpy(),
                d_sae,
            )
        )
    store = arguments.out / "features.sqlite"
    sources = _sources(Shards(paths, d_sae), saved.dictionary, inputs["unembedding"])
    write_store(store, sources)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "features": d_sae, "features_per_second": d_sae / seconds}


def _dictionary(decoder: torch.Tensor, k: int) -> Dictionary:
    d_sae, d_in = decoder.shape
    return Dictionary(
        "topk",
        W_enc=decoder.T.clone(),
        W_dec=decoder,
        b_dec=torch.zeros(d_in),
        b_enc=torch.zeros(d_sae),
        k=k,
    )


def _sources(shards: Shards, dictionary: Dictionary, unembedding: torch.Tensor) -> StoreSources:
    return StoreSources(
        shards=shards,
        dictionary=dictionary,
        vocabulary=Vocabulary([f" token{index}".encode() for index in range(len(unembedding))]),
        lens=Lens(torch.ones(dictionary.d_in), False, unembedding),
        no_lens_because="",
        dictionary_facts={"name": "synthetic"},
        made_from={"weights_sha256": "synthetic"},
    )


def _synthetic_rows(
    rng: np.random.Generator, n_rows: int, d_sae: int, l0: int
) -> tuple[np.ndarray, np.ndarray]:
    """Latents [rows, l0] by Zipf's law with repeats, and exponential activations above 0.1."""
    weights = 1 / np.arange(1, d_sae + 1) ** ZIPF
    rank = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random((n_rows, l0)))
    # Ranks are scattered over the indices, as in a trained dictionary.
    latent = (np.minimum(rank, d_sae - 1) * 7919) % d_sae
    value = rng.exponential(size=latent.shape).astype(np.float32) + np.float32(0.1)
    return latent, value


def _synthetic_shards(arguments: argparse.Namespace) -> Shards:
    rng = np.random.default_rng(0)
    paths = []
    for first in range(0, arguments.tokens // CONTEXT, SHARD_CONTEXTS):
        n_contexts = min(SHARD_CONTEXTS, arguments.tokens // CONTEXT - first)
        latent, value = _synthetic_rows(rng, n_contexts * CONTEXT, arguments.d_sae, arguments.l0)
        order = np.argsort(latent, axis=1, kind="stable")
        latent = np.take_along_axis(latent, order, axis=1)
        fresh = np.ones(latent.shape, bool)
        fresh[:, 1:] = latent[:, 1:] != latent[:, :-1]
        row, _ = fresh.nonzero()
        tokens = rng.integers(0, arguments.vocab, (n_contexts, CONTEXT))
        paths.append(
            _write(arguments.out, first, tokens, row, latent[fresh], value[fresh], arguments.d_sae)
        )
    return Shards(paths, arguments.d_sae)


def _write(
    folder: Path,
    first: int,
    tokens: np.ndarray,
    row: np.ndarray,
    latent: np.ndarray,
    value: np.ndarray,
    d_sae: int,
) -> Path:
    path = folder / f"shard-{first:06d}.safetensors"
    text = ShardText(first, tokens, np.ones(tokens.shape, bool), {})
    write_shard(path, text, row, latent, value, d_sae, "benchmark")
    return path


def _page_times(path: Path) -> dict[str, float]:
    """Milliseconds to read everything about one feature, of random features."""
    rng = np.random.default_rng(1)
    with FeatureStore(path) as store:
        chosen = rng.integers(0, store.n_features, PAGES).tolist()
        store.feature(chosen[0])
        times = []
        for feature in chosen:
            start = time.perf_counter()
            store.feature(feature)
            times.append(1e3 * (time.perf_counter() - start))
    return {
        "page_ms_p50": float(np.quantile(times, 0.5)),
        "page_ms_p95": float(np.quantile(times, 0.95)),
    }


if __name__ == "__main__":
    main()
