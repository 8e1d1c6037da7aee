"""A feature store of twelve features on fourteen contexts in which every number is known.

It is written with the file format alone, not with the builder, and its tokens are hostile: tags,
quotes, formulas, control characters, right-to-left text and an emoji cut in two.
"""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import numpy as np

from saelab.features.schema import (
    FLAGS,
    KIND,
    N_BINS,
    QUANTILE_LEVELS,
    SCHEMA_VERSION,
    TABLES,
    pack,
)
from saelab.features.unpacking import TOKEN_SEPARATOR
from saelab.formats.manifest import seal

APP = Path(__file__).resolve().parents[2] / "dashboards" / "pages" / "start.py"
SCRIPT = "<script>document.title='HACKED'</script>"
IMAGE = "<img src=x onerror=\"document.title='HACKED'\">"
TOKENS = [
    "<bos>",
    " cat",
    " dog",
    SCRIPT,
    "\n",
    "\t",
    "\u200b",
    '"quoted"',
    "&amp;",
    "😀".encode()[:2],
    "😀".encode()[2:],
    " שלום",
    "=cmd()",
    IMAGE,
    "$x$ **b** [a](http://evil.example) :red[r]",
    " the",
]
TOKEN_BYTES = [t if isinstance(t, bytes) else t.encode() for t in TOKENS]
N_FEATURES, N_CONTEXTS, LENGTH, D_IN = 12, 14, 20, 6
DEAD, DENSE, ONCE = 1, 2, 6
FIRES_ON = {
    0: {1},
    3: {3},
    4: {10},
    5: {11},
    7: {13},
    8: {1, 2},
    9: {12, 14},
    10: {4, 5, 6},
    11: {7},
}


def contexts():
    """Token ids: the cut emoji always whole, position 0 the BOS."""
    generator = np.random.default_rng(0)
    rows = generator.choice([1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15], (N_CONTEXTS, LENGTH))
    rows[:, 0] = 0
    rows[:, 5], rows[:, 6] = 9, 10
    return rows


def dense_codes():
    """[context, position, feature] activations."""
    tokens, generator = contexts(), np.random.default_rng(1)
    codes = np.zeros((N_CONTEXTS, LENGTH, N_FEATURES), np.float32)
    strength = generator.uniform(0.5, 4.0, codes.shape).astype(np.float32)
    for feature, wanted in FIRES_ON.items():
        on = np.isin(tokens, list(wanted))
        codes[..., feature] = np.where(on, strength[..., feature], 0)
    codes[..., DENSE] = strength[..., DENSE]
    codes[3, 7, ONCE] = 2.5
    codes[:, 0] = 0
    return codes


def decoder():
    """Unit rows [feature, d_in]."""
    rows = np.random.default_rng(2).normal(size=(N_FEATURES, D_IN))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def manifest(dictionary_hash: str = "toyhash"):
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "created": "2026-01-01T00:00:00+00:00",
        "library_versions": {"saelab": "0"},
        "seed": 0,
        "config": {},
        "made_from": {
            "dictionary": "toy",
            "dictionary_hash": dictionary_hash,
            "weights_sha256": "0" * 64,
            "model": "toy-model",
            "hook_point": "blocks.0.hook_resid_post",
            "text": "toy text",
            "context_length": LENGTH,
            "row_rule": {"exclude_bos": True},
        },
        "store_id": "toy-store-1",
        "n_features": N_FEATURES,
        "n_tokens": N_CONTEXTS * (LENGTH - 1),
        "n_positions": N_CONTEXTS * LENGTH,
        "n_sequences": N_CONTEXTS,
        "excluded": {"bos": N_CONTEXTS},
        "context_length": LENGTH,
        "d_in": D_IN,
        "token_dtype": "<u2",
        "quantile_levels": list(QUANTILE_LEVELS),
        "has_logit_lens": True,
        "logit_lens": "decoder row times the final norm's gain, centred over the vocabulary",
        "map": {"method": "PCA", "explained": [0.4, 0.3]},
        "flag_bounds": {"rare_below": 1e-6, "dense_above": 0.1},
        "definitions": {},
        "dictionary": {"name": "toy", "architecture": "relu", "k": None},
    }


def write_toy_store(path: Path, dictionary_hash: str = "toyhash") -> Path:
    """Write the store and return where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codes, tokens = dense_codes(), contexts()
    connection = sqlite3.connect(path)
    connection.executescript(TABLES)
    connection.execute(
        "INSERT INTO manifest VALUES (?)", (json.dumps(seal(manifest(dictionary_hash))),)
    )
    lengths = np.array([len(t) for t in TOKEN_BYTES], "<u4")
    connection.execute(
        "INSERT INTO vocabulary VALUES (?, ?)", (lengths.tobytes(), b"".join(TOKEN_BYTES))
    )
    counted = np.packbits(np.arange(LENGTH) > 0).tobytes()
    for place, row in enumerate(tokens):
        connection.execute(
            "INSERT INTO sequence VALUES (?, ?, ?)", (place, row.astype("<u2").tobytes(), counted)
        )
    for feature in range(N_FEATURES):
        _write_feature(connection, feature, codes[..., feature], tokens)
    connection.commit()
    connection.close()
    return path


def text_of(token: int) -> str:
    return TOKEN_BYTES[token].decode(errors="replace")


def _write_feature(connection, feature, codes, tokens):
    values = codes[codes > 0].astype(np.float64)
    maxima = codes.max(axis=1)
    active = np.flatnonzero(maxima > 0)
    ranked = active[np.argsort(-maxima[active], kind="stable")]
    anchors = {int(c): int(codes[c].argmax()) for c in range(N_CONTEXTS)}
    top_tokens = list(dict.fromkeys(text_of(int(tokens[c, anchors[c]])) for c in ranked.tolist()))
    logits = np.random.default_rng(100 + feature).normal(size=len(TOKENS))
    order = np.argsort(-logits)
    flags = FLAGS["dead"] if not len(values) else FLAGS["dense"] if feature == DENSE else 0
    moments = _moments(values)
    lens = _moments(logits)
    half = len(ranked) // 2
    groups = [ranked[:half], ranked[half:]] if half else []
    connection.execute(
        f"INSERT INTO feature VALUES ({','.join('?' * 22)})",
        (
            feature, len(values), len(values) / (N_CONTEXTS * (LENGTH - 1)),
            float(values.max(initial=0)), *moments, len(active), 1.0, 1.0, 0.1, None,
            float(decoder()[feature, 0]), float(decoder()[feature, 1]),
            float(logits.max()), float(logits.min()), lens[2], lens[3], flags,
            TOKEN_SEPARATOR.join(top_tokens),
            TOKEN_SEPARATOR.join(text_of(int(t)) for t in order[:3]),
        ),
    )  # fmt: skip
    edges = np.linspace(0, values.max(initial=1.0), N_BINS + 1)
    lists = [ranked, *groups, ranked]
    shown = [int(c) for group in lists for c in group]
    positions = [np.flatnonzero(codes[c]) for c in shown]
    blobs = {
        "statistics": {
            "quantiles": np.quantile(values, QUANTILE_LEVELS) if len(values) else np.zeros(0),
            "histogram": np.histogram(values, edges)[0],
        },
        "examples": {
            "stratum_low": np.array(
                [maxima[g].min() if i == 0 else 0 for i, g in enumerate(groups)]
            ),
            "stratum_high": np.array(
                [maxima[groups[0]].max(), maxima[groups[0]].min()][: len(groups)]
            )
            if groups
            else np.zeros(0),
            "stratum_sequences": np.array([len(g) for g in groups]),
            "stratum_activations": np.array([(codes[g] > 0).sum() for g in groups]),
            "stratum_mass": np.array([codes[g].sum() for g in groups]),
            "list_sizes": np.array([len(group) for group in lists]),
            "sequence": np.array(shown, dtype=int),
            "anchor": np.array([anchors[c] for c in shown], dtype=int),
            "n_active": np.array([len(p) for p in positions], dtype=int),
            "position": np.concatenate(positions) if positions else np.zeros(0),
            "activation": np.concatenate(
                [codes[c][p] for c, p in zip(shown, positions, strict=True)]
            )
            if positions
            else np.zeros(0),
        },
        "silent": {
            "near_sequence": np.flatnonzero(maxima == 0)[:2],
            "near_anchor": np.full(len(np.flatnonzero(maxima == 0)[:2]), 3),
            "near_feature": np.full(len(np.flatnonzero(maxima == 0)[:2]), DENSE),
            "near_activation": np.full(len(np.flatnonzero(maxima == 0)[:2]), 1.5),
            "random_sequence": np.flatnonzero(maxima == 0)[:3],
            "random_anchor": np.full(len(np.flatnonzero(maxima == 0)[:3]), 4),
        },
        "logits": {
            "top_token": order[:5],
            "top_value": logits[order[:5]],
            "bottom_token": order[::-1][:5],
            "bottom_value": logits[order[::-1][:5]],
            "ends": np.array([logits.min(), logits.max()]),
            "histogram": np.histogram(logits, N_BINS)[0],
            "moments": np.array(lens, dtype=float),
        },
        "neighbours": {
            f"{kind}_{what}": values_
            for kind in ("decoder", "encoder")
            for what, values_ in zip(("feature", "cosine"), _nearest(feature), strict=True)
        },
        "coactivation": {
            f"{kind}{what}": values_
            for kind in ("jaccard", "pearson")
            for what, values_ in (
                ("_feature", np.array([DENSE])),
                ("", np.array([0.25])),
                ("_both", np.array([len(values)])),
            )
        },
    }
    for table, arrays in blobs.items():
        connection.execute(f"INSERT INTO {table} VALUES (?, ?)", (feature, pack(table, arrays)))


def _nearest(feature):
    cosines = decoder() @ decoder()[feature]
    cosines[feature] = -2
    order = np.argsort(-cosines)[:4]
    return order, cosines[order]


def _moments(values):
    if not len(values):
        return None, None, None, None
    mean, std = values.mean(), values.std()
    if std == 0:
        return float(mean), 0.0, None, None
    z = (values - mean) / std
    return float(mean), float(std), float((z**3).mean()), float((z**4).mean())


def write_dictionary(folder: Path, rows: np.ndarray, content_hash: str) -> Path:
    """A dictionary's folder as far as the dashboard reads it."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    save_file({"W_dec": rows.astype(np.float32)}, str(folder / "sae_weights.safetensors"))
    (folder / "cfg.json").write_text(
        json.dumps(
            {
                "architecture": "relu",
                "d_in": D_IN,
                "d_sae": len(rows),
                "metadata": {"model_name": "toy-model", "hook_name": "blocks.0.hook_resid_post"},
            }
        )
    )
    (folder / "saelab.json").write_text(
        json.dumps(
            {
                "kind": "dictionary",
                "schema_version": 1,
                "config": {"method": "relu", "measured_l0": 2.5, "fvu_on_training_rows": 0.25},
                "made_from": {"model": "toy-model", "hook_point": "blocks.0.hook_resid_post"},
                "files": {"sae_weights.safetensors": "0" * 64},
                "content_hash": content_hash,
            }
        )
    )
    return folder


def page_opener(monkeypatch, *roots):
    """A function that opens a page of the app on these folders, and runs it once."""
    from streamlit.testing.v1 import AppTest

    monkeypatch.setenv("SAELAB_DASHBOARD_ROOTS", json.dumps([os.fspath(root) for root in roots]))

    def open_page(name: str = "home", **params: str) -> AppTest:
        app = AppTest.from_file(str(APP), default_timeout=30)
        for key, value in params.items():
            app.query_params[key.rstrip("_")] = value
        if name != "home":
            app.switch_page(f"{name}.py")
        return app.run()

    return open_page
