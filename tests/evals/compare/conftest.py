"""Planted runs: tiny dictionaries with made-up results beside them, so that no model is needed."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet

from saelab.cache.config import TokenFilter
from saelab.config import to_plain
from saelab.dictionary import Dictionary, save_dictionary
from saelab.evals.compare import jobs
from saelab.evals.compare.suite import CompareConfig
from saelab.evals.kept import asked_of
from saelab.evals.steering.numbers import metric_name
from saelab.formats.evaluation_result import (
    EvaluationResult,
    MeasuredMetric,
    read_evaluation_result,
    write_evaluation_result,
)
from saelab.formats.files import write_json
from saelab.formats.manifest import library_versions, new_manifest
from saelab.text.contexts import TextConfig

D_IN, D_SAE = 6, 48
CONFIG = CompareConfig()
ASKED = {
    "core": asked_of(jobs._core(CONFIG)),
    "consistency": asked_of(jobs.settings_for(jobs.CONSISTENCY, CONFIG)),
    "steering": asked_of(jobs._steering(CONFIG)),
}
ORIGIN = {
    "model": "planted-model",
    "model_hash": "a" * 64,
    "model_dtype": "float32",
    "hook_point": "blocks.1.hook_resid_post",
    "text": to_plain(TextConfig(source="somewhere")),
    "text_hash": "b" * 64,
    "context_length": 32,
    "row_rule": to_plain(TokenFilter()),
    "norm_ceiling": 11.0,
    "cache_hash": "c" * 64,
}
ROW_SETTINGS = {
    name: ORIGIN[name] for name in ("context_length", "text", "row_rule", "norm_ceiling")
} | {"model_dtype": "float32"}


def contents(out):
    """A comparison: its result, and the tables beside it in the shape that tests speak of."""
    result = read_evaluation_result(out / "compare.json")
    tables = {
        items: parquet.read_table(out / name).to_pylist()
        for items, name in result.item_files.items()
    }
    for items in ("rows", "inference_modes"):
        for row in tables.get(items, ()):
            row["values"] = {
                name.removesuffix("_n"): spread(row, name.removesuffix("_n"))
                for name in row
                if name.endswith("_n")
            }
    for row in tables.get("common_l0", ()):
        row |= {name: spread(row, name) for name in ("value", "difference")}
    return tables | {
        "result": result,
        "charts": [chart.name for chart in result.charts],
        "notes": result.notes,
        "reference": result.settings["reference"],
        "definitions": {metric.name.rsplit("/", 1)[1] for metric in result.metrics},
    }


def spread(row, name):
    return {"mean": row[name], "sd": row[f"{name}_sd"], "n": row[f"{name}_n"]}


def metrics(values):
    """Metrics with words enough for a page."""
    return tuple(
        MeasuredMetric(name=name, value=value, unit="1", definition=f"What {name} means.")
        for name, value in values.items()
    )


class Planter:
    """Writes runs as `saelab train` and the suites would leave them, with numbers of our choice."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.hashes: dict[Path, str] = {}

    def dictionary(
        self, folder, *, method, k, seed, d_sae=D_SAE, options=None, origin=None, n_tokens=1000
    ):
        generator = torch.Generator().manual_seed(hash((str(folder), seed)) % 2**31)
        W = torch.randn(d_sae, D_IN, generator=generator)
        saved = Dictionary(
            "relu", W_enc=W.T.clone(), W_dec=W, b_dec=torch.zeros(D_IN), b_enc=torch.zeros(d_sae)
        )
        self.hashes[folder] = save_dictionary(
            folder,
            saved,
            self_test_inputs=torch.randn(2, D_IN, generator=generator),
            training={
                "method": method,
                "options": options or {"learning_rate": None},
                "optimizer": {"learning_rate": 0.003},
                "n_tokens": n_tokens,
                "batch_rows": 100,
                "product_dtype": "float32",
                "target_l0": k,
                "measured_l0": float(k),
            },
            made_from=ORIGIN | (origin or {}),
            seed=seed,
        )

    def run(
        self,
        name="run",
        *,
        methods=("topk", "other"),
        ks=(4, 8, 16),
        seeds=(0, 1),
        d_sae=D_SAE,
        l0=lambda method, k, seed: float(k),
        fvu=lambda method, k, seed: 1 / k,
        origin=None,
        options=None,
        status="complete",
        results=True,
        n_tokens=1000,
    ):
        """A run with its dictionaries and, unless told otherwise, all their results."""
        run = self.folder / name
        listed = {}
        for method in methods:
            for k in ks:
                group = []
                for seed in seeds:
                    own = f"{method}-d{d_sae}-k{k}-s{seed}"
                    folder = run / "dictionaries" / own
                    self.dictionary(
                        folder,
                        method=method,
                        k=k,
                        seed=seed,
                        d_sae=d_sae,
                        origin=origin,
                        options=options,
                        n_tokens=n_tokens,
                    )
                    listed[own] = {
                        "folder": f"dictionaries/{own}",
                        "seconds_per_step": 0.5 + seed,
                        "state_bytes": 1 << 20,
                        "fvu": 0.1,
                        "l0": float(k),
                    }
                    group.append((folder, seed))
                if results:
                    self.results(group, method, k, d_sae, l0, fvu)
        manifest = new_manifest("training_run", 1, seed=0, config={}, made_from=ORIGIN)
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / "run.json", manifest | {"status": status, "dictionaries": listed})
        return run

    def results(self, group, method, k, d_sae, l0, fvu):
        for folder, seed in group:
            others = [(other, s) for other, s in group if other != folder]
            self.core(folder, l0=l0(method, k, seed), fvu=fvu(method, k, seed), d_sae=d_sae)
            if others:
                self.consistency(folder, others, share=0.25 + seed / 2)
            self.steering(folder, size=1.0 + k)

    def core(self, folder, *, l0, fvu, d_sae=D_SAE, extra=None, item_files=None, **settings):
        evals = folder / "evals"
        density = [l0 / d_sae] * d_sae
        self.features(evals / "core_features.parquet", density)
        values = {
            "fvu": fvu,
            "l0_mean": l0,
            "l0_std": 0.5,
            "dead_fraction": 0.125,
            "loss_recovered_zero": 1 - fvu / 2,
            "loss_recovered_mean": 1 - fvu,
            "kl": fvu / 10,
        }
        self.write(
            folder,
            "core",
            values | (extra or {}),
            {"n_tokens": CONFIG.n_tokens, "n_loss_tokens": CONFIG.n_loss_tokens, **ROW_SETTINGS}
            | settings,
            item_files=item_files or {"features": "core_features.parquet"},
        )

    def features(self, path, density):
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = {"latent": list(range(len(density))), "density": [float(d) for d in density]}
        parquet.write_table(pyarrow.table(columns), path)

    def consistency(self, folder, others, *, share, **settings):
        columns = {
            "latent": list(range(10)),
            "compared": [place < 8 for place in range(10)],
            "max_activation": [float(place) for place in range(10)],
            "mcs": [0.5] * 6 + [1.0, share, None, None],
        }
        parquet.write_table(
            pyarrow.table(columns), folder / "evals" / "consistency_features.parquet"
        )
        self.write(
            folder,
            "consistency",
            {"mcs_share": share, "mcs_mean": share, "mcs_random": 0.05},
            {
                "compared_with": {
                    f"seed {seed}": {"name": other.name, "hash": self.hashes[other]}
                    for other, seed in others
                },
                "threshold": 0.9,
                "top_fraction": 0.01,
                "activity": True,
                "n_tokens": CONFIG.n_tokens,
            }
            | settings,
            item_files={"features": "consistency_features.parquet"},
        )

    def steering(self, folder, *, size, **settings):
        whats = ("mean", "q05", "q25", "q50", "q75", "q95")
        values = {"n_alive": 40, "n_latents": 40}
        for quantity in ("size", "consistency"):
            for place, what in enumerate(whats):
                values[metric_name(quantity, what, 1.0)] = size + place / 10
                values[metric_name(quantity, f"random_{what}", 1.0)] = place / 10
        self.write(
            folder,
            "steering",
            values,
            {
                "n_latents": 40,
                "n_contexts": 16,
                "prompt_tokens": 32,
                "strengths": [0.5, 1.0],
                "n_random": 128,
                "n_top_tokens": 10,
                "n_tokens": CONFIG.n_tokens,
                **ROW_SETTINGS,
            }
            | settings,
            seed=0,
        )

    def write(self, folder, suite, values, settings, **more):
        asked = ASKED[suite] | {
            name: settings[name] for name in ("n_tokens", "strengths") if name in settings
        }
        if suite == "consistency":
            others = [run["hash"] for run in settings["compared_with"].values()]
            asked |= {"dictionaries": sorted([self.hashes[folder], *others])}
        assert all(value is None or math.isfinite(value) for value in values.values())
        write_evaluation_result(
            folder / "evals" / f"{suite}.json",
            EvaluationResult(
                suite=suite,
                dictionary_name=folder.name,
                dictionary_hash=self.hashes[folder],
                settings=settings,
                asked=asked,
                made_from=ORIGIN,
                metrics=metrics(values),
                **more,
            ),
        )


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """A planter of runs in the test's own folder.

    Its hundreds of small files are neither flushed nor are library versions looked up for each.
    """
    versions = library_versions()
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr("saelab.formats.manifest.library_versions", lambda: versions)
    return Planter(tmp_path)
