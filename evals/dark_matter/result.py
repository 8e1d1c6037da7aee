"""From numbers to the result file of one dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from saelab.dictionary import SavedDictionary
from saelab.formats.evaluation_result import EvaluationResult, MeasuredMetric

from .config import DarkMatterConfig
from .definition import Definition
from .definitions import DEFINITIONS, define
from .measure import Measured
from .part_sums import VECTORS
from .row_source import Rows

SUITE = "dark_matter"
RESULT_FILE = "dark_matter.json"
PAGE_FILE = "dark_matter.html"
TOKENS_FILE = "dark_matter_tokens.parquet"
PURSUIT_TOKENS_FILE = "dark_matter_pursuit_tokens.parquet"
PROBE_FILE = "dark_matter_probe.safetensors"


@dataclass
class Extra:
    """What an analysis beside the two passes adds to a dictionary's result."""

    values: dict[str, float | int | None] = field(default_factory=dict)
    """Numbers by name."""
    definitions: dict[str, Definition] = field(default_factory=dict)
    """Of each of them."""
    figure_data: dict[str, Any] = field(default_factory=dict)
    """By figure name."""

    def add(self, other: Extra) -> None:
        """Take over another analysis' findings."""
        self.values |= other.values
        self.definitions |= other.definitions
        self.figure_data |= other.figure_data


def build_result(
    saved: SavedDictionary,
    measured: list[Measured],
    extra: Extra,
    rows: Rows,
    config: DarkMatterConfig,
) -> EvaluationResult:
    """Everything found out about one dictionary.

    Args:
        saved: the dictionary.
        measured: by its own codes, then by pursuit codes where they were asked for.
        extra: findings of the other analyses.
        rows: what was evaluated.
        config: settings.
    """
    values: dict[str, float | int | None] = {}
    definitions: dict[str, Definition] = {}
    figure_data: dict[str, Any] = {}
    for one in measured:
        prefix = one.encoder.prefix
        for name in DEFINITIONS:
            if name in one.values and not (prefix and name in ("n_train_rows", "n_test_rows")):
                values[prefix + name] = one.values[name]
                definitions[prefix + name] = define(prefix + name)
        figure_data |= {prefix + name: data for name, data in one.figure_data.items()}
    figure_data |= _comparisons(measured)
    values |= extra.values
    definitions |= extra.definitions
    figure_data |= extra.figure_data
    items = {"tokens": TOKENS_FILE}
    if len(measured) > 1:
        items["pursuit_tokens"] = PURSUIT_TOKENS_FILE
    origin = saved.made_from
    return EvaluationResult(
        suite=SUITE,
        dictionary_name=saved.name,
        dictionary_hash=saved.content_hash,
        settings=settings_of(config, rows),
        made_from={
            "model": origin.get("model"),
            "model_hash": origin.get("model_hash"),
            "hook_point": saved.hook_point,
            **rows.described,
            "architecture": saved.dictionary.architecture,
            "d_in": saved.dictionary.d_in,
            "d_sae": saved.dictionary.d_sae,
        },
        metrics=tuple(
            MeasuredMetric(
                name=name,
                value=value,
                unit=definitions[name].unit,
                definition=definitions[name].text,
            )
            for name, value in values.items()
        ),
        figure_data=figure_data,
        item_files=items,
        seed=config.seed,
    )


def settings_of(config: DarkMatterConfig, rows: Rows) -> dict[str, Any]:
    """Everything that decided the numbers."""
    return {
        "analyses": list(config.analyses),
        "n_tokens": config.n_tokens,
        "n_loss_tokens": config.n_loss_tokens,
        "first_position": rows.first_position,
        "train_fraction": config.train_fraction,
        "ridge": config.ridge,
        "seed": config.seed,
        "n_downstream_tokens": config.n_downstream_tokens,
        "n_synthetic_rows": config.n_synthetic_rows,
        "sources": [str(path) for path in config.sources],
        "component_dictionaries": [str(path) for path in config.component_dictionaries],
        "device": config.device,
    }


def _comparisons(measured: list[Measured]) -> dict[str, Any]:
    """Data of the figures that show one number in several ways, or several encoders."""
    own = measured[0].values
    data: dict[str, Any] = {
        "error_parts": {
            "encoders": [one.encoder.words for one in measured],
            "fvu": [one.values["fvu"] for one in measured],
            "fvu_nonlinear": [one.values["fvu_nonlinear"] for one in measured],
        },
        "norm_predictors": _predictors(own),
        "ways_to_score": _ways(own),
    }
    if "norm_test_error" in own:
        data["norm_test"] = _norm_test(own)
    return data


def _predictors(values: Mapping[str, Any]) -> dict[str, Any]:
    labels = {
        "norm_r_squared": "activation x",
        "norm_r_squared_activation_norm": "norm |x|",
        "norm_r_squared_token_identity": "token identity",
        "norm_r_squared_token_identity_in_sample": "token identity, in sample",
        "norm_r_squared_l0": "L0",
        "norm_r_squared_token_loss": "token loss",
    }
    known = {label: values[name] for name, label in labels.items() if values[name] is not None}
    return {"labels": list(known), "r_squared": list(known.values())}


def _ways(values: Mapping[str, Any]) -> dict[str, Any]:
    labels = {
        "": "held-out contexts",
        "_no_bias": "no constant",
        "_token_split": "token split",
        "_all_tokens": "all rows",
        "_as_published": "as published",
    }
    return {
        "labels": list(labels.values()),
        "numbers": {
            name: [values[f"{name}{suffix}"] for suffix in labels]
            for name in ("fvu_nonlinear", "error_r_squared", "norm_r_squared")
        },
    }


def _norm_test(values: Mapping[str, Any]) -> dict[str, Any]:

    kinds = {
        "": "from x",
        "_self": "from itself",
        "_norm_only": "from |x|²",
        "_gaussian": "Gaussian",
    }
    return {
        "vectors": list(VECTORS),
        "r_squared": {
            label: [values[f"norm_test{kind}_{name}"] for name in VECTORS]
            for kind, label in kinds.items()
        },
    }
