"""Where the rows come from on which latents are ranked: held-out text, or planted features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from saelab.dictionary import SavedDictionary
from saelab.dictionary.data_spec import held_out_rows
from saelab.text.contexts import describe_text

from ..subjects import by_data_spec, load_models, subjects_of
from .activity import Activity, RowSource, measure_activity
from .config import ConsistencyConfig

PLANTED = "planted:"
"""How the model of a dictionary is called that was trained on planted features."""


@dataclass(frozen=True)
class Pass:
    """Dictionaries that are ranked on the same rows."""

    members: list[SavedDictionary]
    rows: RowSource
    described: dict[str, Any]
    """What the rows are, for the result."""


def rank(
    dictionaries: Sequence[SavedDictionary], config: ConsistencyConfig, device: torch.device
) -> tuple[dict[str, Activity], dict[str, dict[str, Any]]]:
    """The activity of every dictionary on its own held-out rows.

    Returns:
        By content hash: the activity, and what the rows were.

    Raises:
        ArtifactError: a dictionary that does not fit its model or record its rows.
        ModelError: an unknown model or hook point.
        TextError: too little held-out text.
        ActivationError: activations or codes that are not finite.
    """
    planted = [saved for saved in dictionaries if _is_planted(saved)]
    others = [saved for saved in dictionaries if not _is_planted(saved)]
    activities: dict[str, Activity] = {}
    described: dict[str, dict[str, Any]] = {}
    for one in [*_text_passes(others, config), *_planted_passes(planted, config, device)]:
        found = measure_activity(one.members, one.rows, config.n_tokens)
        for saved, activity in zip(one.members, found, strict=True):
            activities[saved.content_hash] = activity
            described[saved.content_hash] = one.described
    return activities, described


def _is_planted(saved: SavedDictionary) -> bool:
    return str(saved.made_from.get("model", "")).startswith(PLANTED)


def _text_passes(dictionaries: Sequence[SavedDictionary], config: ConsistencyConfig) -> list[Pass]:
    subjects = subjects_of(dictionaries, [saved.folder for saved in dictionaries], config)
    models = load_models(subjects, config.device)
    passes = []
    for spec, group in by_data_spec(subjects).items():
        model = models[spec.model, spec.model_dtype]
        for subject in group:
            subject.saved.dictionary.to(model.device)

        def rows(model=model, spec=spec):
            return held_out_rows(model, spec, config.n_tokens, config.batch_contexts)

        described = {
            "rows": "held-out text",
            "text": describe_text(spec.text),
            "context_length": spec.context_length,
            "model_dtype": spec.model_dtype,
            "norm_ceiling": spec.norm_ceiling,
        }
        passes.append(Pass([subject.saved for subject in group], rows, described))
    return passes


def _planted_passes(
    dictionaries: Sequence[SavedDictionary], config: ConsistencyConfig, device: torch.device
) -> list[Pass]:
    from saelab.synthetic.config import PlantedConfig
    from saelab.synthetic.generator import HELD_OUT, PlantedSource
    from saelab.synthetic.truth import truth_of

    by_truth: dict[PlantedConfig, list[SavedDictionary]] = {}
    for saved in dictionaries:
        by_truth.setdefault(truth_of(saved), []).append(saved)
    passes = []
    for truth, members in by_truth.items():

        def rows(truth=truth):
            chunks = PlantedSource(truth).chunks(config.n_tokens, stream=HELD_OUT)
            return (chunk.rows.to(device) for chunk in chunks)

        passes.append(Pass(members, rows, {"rows": "held-out planted rows"}))
    return passes
