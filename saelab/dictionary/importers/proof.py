"""Does an imported dictionary reconstruct? Its fingerprints on text, and the likely cause if not.

A wrong hook point, a missing scale, an input bias forgotten or a model with other weights leaves a
dictionary that loads, runs and is wrong. Each shows in numbers that its authors report (L0, FVU,
dead share) or in an FVU near one or above. Where they disagree, the usual mistakes are tried one by
one on the same rows, and the one that mends most is named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.cache.config import TokenFilter
from saelab.cache.rows import find_norm_ceiling, select_rows
from saelab.dictionary.architectures import Dictionary
from saelab.dictionary.data_spec import DataSpec
from saelab.dictionary.layered import LayeredDictionary
from saelab.dictionary.saelens import WRITTEN_TO_RESIDUAL
from saelab.dictionary.site import Site
from saelab.dictionary.site_rows import held_out_batches, site_rows
from saelab.dictionary.storage import SELF_TEST_ROWS
from saelab.errors import ActivationError, ConfigError, ModelError
from saelab.model.language_model import LanguageModel
from saelab.stats.metrics import ReconstructionStatistics, SparsityStatistics, fvu
from saelab.text.contexts import TextConfig, text_batches

from .foreign import SCALE
from .processed import on_raw_weights

CALIBRATION_CONTEXTS = 32
BATCH_CONTEXTS = 8
SUSPICIOUS_FVU = 0.5
"""Above this a dictionary explains so little that a mistake is likelier than a bad dictionary."""
L0_TOLERANCE = 1.5
"""A measured L0 this many times the reported one, or its inverse, disagrees with it."""
CLEARLY_BETTER = 0.7
"""An alternative is named where its FVU is below this share of the one measured."""
CLEARLY_NEARER = 0.9
"""Where FVU at another hook point is below this share of the one measured, that is said at once."""
ALIKE = 1.1
"""Causes are all named whose error is at most so many times that of the best."""
ROUNDING = 1e-9
"""FVU below which nothing is nearer than anything else."""
PROBE_ROWS = 1024
"""Rows on which the usual mistakes are tried; from the first contexts."""
NEIGHBOURS = ("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out")


@dataclass(frozen=True)
class Proof:
    """What was measured, and whether it agrees with what the authors report."""

    measured: Mapping[str, float]
    """l0, fvu, dead_fraction, mean_norm (of the rows read), n_rows."""
    disagreements: tuple[str, ...]
    """Sentences; empty where nothing disagrees."""
    likely_cause: str | None = None
    """The mistake that, undone, mends most; None where none does."""


def norm_ceilings(
    model: LanguageModel,
    site: Site,
    text: TextConfig,
    context_length: int,
    token_filter: TokenFilter,
) -> dict[str, float | None]:
    """The ceiling of the norm rule at each hook point, from the training part of a text.

    Raises:
        TextError: too little text.
        ActivationError: the filter leaves no row, or half of them are zero.
    """
    if token_filter.max_norm_ratio is None:
        return dict.fromkeys(site.hook_points)
    batches = text_batches(
        text, model, split="train", context_length=context_length, batch_contexts=BATCH_CONTEXTS
    )
    norms: dict[str, list[Tensor]] = {name: [] for name in site.hook_points}
    for batch in islice(batches, CALIBRATION_CONTEXTS // BATCH_CONTEXTS):
        captured = model.capture(batch.tokens, site.hook_points)
        for name, activations in captured.items():
            selection = select_rows(
                token_filter,
                batch.tokens,
                activations,
                special_ids=model.special_ids,
                bos_id=model.bos_id,
                norm_ceiling=None,
                left_out=batch.left_out,
            )
            norms[name].append(selection.norms[selection.keep])
    return {
        name: find_norm_ceiling(token_filter, torch.cat(parts), name)
        for name, parts in norms.items()
    }


@torch.no_grad()
def prove(
    model: LanguageModel,
    spec: DataSpec,
    dictionary: Dictionary,
    reported: Mapping[str, Any],
    n_tokens: int,
) -> tuple[Proof, Float[Tensor, "rows d_in"]]:
    """Measure a dictionary's fingerprints on held-out text and hold them against its authors'.

    Args:
        model: the dictionary's.
        spec: site, text and filter.
        dictionary: on the model's device.
        reported: reported_l0, reported_fvu, reported_dead_fraction, norm_scaling_factor, as far as
            there are any.
        n_tokens: of held-out text.

    Returns:
        The proof, and some rows read, for a self-test.

    Raises:
        ActivationError: no row is left, or one is not finite.
        TextError: too little text.
    """
    site = spec.site
    elsewhere = _neighbours(model, site)
    others: dict[str, Tensor] = {}
    sparsity = SparsityStatistics(dictionary.d_sae, model.device)
    reconstruction = ReconstructionStatistics(dictionary.d_out, device=model.device)
    x = torch.zeros(0, dictionary.d_in, device=model.device)
    y = torch.zeros(0, dictionary.d_out, device=model.device)
    first, n_probe, norms = 0, 0, 0.0
    for batch in held_out_batches(model, spec, n_tokens, BATCH_CONTEXTS):
        captured = model.capture(batch.tokens, [*site.hook_points, *(() if first else elsewhere)])
        rows = site_rows(model, spec, batch, captured, first)
        if not first:
            others = {name: captured[name][rows.keep][:PROBE_ROWS].float() for name in elsewhere}
            n_probe = min(PROBE_ROWS, len(rows.inputs))
        first += len(batch)
        if len(x) < SELF_TEST_ROWS:
            x, y = torch.cat([x, rows.inputs]), torch.cat([y, rows.targets])
        codes = dictionary.encode(rows.inputs)
        sparsity.update(codes)
        reconstruction.update(rows.targets, dictionary.decode(codes))
        norms += float(rows.inputs.norm(dim=1).sum())
    if sparsity.n_rows < 2:
        raise ActivationError("the token filter leaves no row to prove the dictionary on: relax it")
    measured = {
        "l0": sparsity.values()["l0_mean"],
        "fvu": reconstruction.values()["fvu"],
        "dead_fraction": float((sparsity.count == 0).double().mean()),
        "mean_norm": norms / sparsity.n_rows,
        "n_rows": sparsity.n_rows,
    }
    disagreements = _disagreements(measured, reported)
    suspicious = bool(disagreements)
    cause = None
    if n_probe > 1:
        processed = _on_raw_weights(dictionary, site, model) if suspicious else {}
        probe = x[:n_probe], y[:n_probe]
        cause = _likely_cause(dictionary, *probe, others, suspicious, reported, processed)
    if cause is not None and not disagreements:
        disagreements = [f"FVU is {measured['fvu']:.3g} here and clearly lower elsewhere"]
    return Proof(measured, tuple(disagreements), cause), x


def _disagreements(measured: Mapping[str, float], reported: Mapping[str, Any]) -> list[str]:
    disagreements = []
    l0, fvu_said = reported.get("reported_l0"), reported.get("reported_fvu")
    dead = reported.get("reported_dead_fraction")
    if l0 and not 1 / L0_TOLERANCE <= measured["l0"] / l0 <= L0_TOLERANCE:
        disagreements.append(f"L0 is {measured['l0']:.4g}; its authors report {l0:.4g}")
    if fvu_said is not None and measured["fvu"] > 1.5 * fvu_said + 0.05:
        disagreements.append(f"FVU is {measured['fvu']:.3g}; its authors report {fvu_said:.3g}")
    elif measured["fvu"] > SUSPICIOUS_FVU:
        disagreements.append(
            f"FVU is {measured['fvu']:.3g}: it explains little of these activations"
        )
    if dead is not None and measured["n_rows"] > 1e5 and measured["dead_fraction"] > dead + 0.2:
        disagreements.append(
            f"{measured['dead_fraction']:.0%} of its latents never fire; its authors report "
            f"{dead:.0%}"
        )
    return disagreements


def _neighbours(model: LanguageModel, site: Site) -> list[str]:
    """Hook points of an autoencoder's width where it may belong: near it, or after any block."""
    first, *more = site.reads
    layer = re.fullmatch(r"blocks\.(\d+)\.(.+)", first)
    if not site.is_autoencoder or more or layer is None:
        return []
    index, width = int(layer[1]), model.width_at(first)
    layers = range(max(0, index - 1), min(model.n_layers, index + 2))
    candidates = [f"blocks.{near}.{end}" for near in layers for end in NEIGHBOURS]
    candidates += [f"blocks.{block}.hook_resid_post" for block in range(model.n_layers)]
    unique = dict.fromkeys(candidates)
    return [name for name in unique if name != first and model.width_at(name) == width]


def _likely_cause(
    dictionary: Dictionary,
    x: Float[Tensor, "rows d_in"],
    y: Float[Tensor, "rows d_out"],
    elsewhere: Mapping[str, Float[Tensor, "rows d_in"]],
    suspicious: bool,
    reported: Mapping[str, Any],
    processed: Mapping[str, Dictionary],
) -> str | None:
    """The usual mistake that, undone, mends FVU and L0 most, if it does so clearly.

    Args:
        dictionary: as it was read.
        x: rows read.
        y: rows written.
        elsewhere: the same rows at other hook points.
        suspicious: whether something disagrees. Where not, other hook points alone are tried.
        reported: reported_l0 and the scale that is recorded, as far as there are any.
        processed: what it would be on raw weights, by what its model would have been.
    """
    reported_l0 = reported.get("reported_l0")

    def tried(changed: Dictionary, rows: Tensor, targets: Tensor) -> tuple[float, float]:
        codes = changed.encode(rows)
        error = max(fvu(targets, changed.decode(codes)), ROUNDING)
        l0 = max(float(codes.l0().double().mean()), 1e-3)
        # An L0 that is off by a factor counts like an FVU that is larger by it.
        off = max(l0 / reported_l0, reported_l0 / l0) if suspicious and reported_l0 else 1.0
        return error * off, error

    scores = {
        f"it belongs to {name}, not to the hook point given": tried(dictionary, rows, rows)
        for name, rows in elsewhere.items()
    }
    if suspicious:
        for name, scale in _scales(x, reported.get(SCALE)).items():
            scores[f"activations are to be scaled {name} first (by {scale:.4g})"] = tried(
                dictionary, x * scale, y * scale
            )
            scores[f"its scale {name} is folded in already (undoing {scale:.4g})"] = tried(
                dictionary, x / scale, y / scale
            )
        for cause, changed in {**_alternatives(dictionary), **processed}.items():
            scores[cause] = tried(changed, x, y)
    if not scores:
        return None
    best = min(scores, key=lambda cause: scores[cause][0])
    share = CLEARLY_BETTER if suspicious else CLEARLY_NEARER
    if scores[best][0] < share * tried(dictionary, x, y)[0]:
        # Scales that hardly differ cannot be told apart by what they mend.
        close = [cause for cause in scores if scores[cause][0] <= ALIKE * scores[best][0]]
        close.sort(key=lambda cause: scores[cause][0])
        return ", or ".join(f"{cause} (FVU would be {scores[cause][1]:.3g})" for cause in close)
    return None


def _on_raw_weights(
    dictionary: Dictionary, site: Site, model: LanguageModel
) -> dict[str, Dictionary]:
    """The dictionary, were it of the model with processed weights; none where that is the same."""
    words = (
        "centred writing weights"
        if site.reads[0].endswith(WRITTEN_TO_RESIDUAL)
        else ("value biases folded away")
    )
    try:
        changed = on_raw_weights(dictionary, site, model)
    except (ConfigError, ModelError):
        return {}
    return {f"it was trained on a model with {words} (--processed-weights)": changed}


def _scales(x: Float[Tensor, "rows d_in"], known: float | None) -> dict[str, float]:
    """Factors that libraries multiply activations by, by what they bring about."""
    norm, spread = float(x.norm(dim=1).mean()), float(x.std(dim=0).square().mean().sqrt())
    factors = {"to norm √d_in": x.shape[1] ** 0.5 / norm, "to norm 1": 1 / norm}
    if spread > 0:
        factors["to variance 1"] = 1 / spread
    if known:
        factors["by the constant that is recorded with it"] = known
    return factors


def _alternatives(dictionary: Dictionary) -> dict[str, Dictionary]:
    """The same weights, read otherwise; none of those that are opened a layer at a time."""
    if isinstance(dictionary, LayeredDictionary):
        return {}
    tensors = dictionary.tensors()
    extra = {"k": dictionary.k or None, "input_normalisation": dictionary.input_normalisation}

    def changed(**changes: Any) -> Dictionary:
        return Dictionary(dictionary.architecture, **{**tensors, **extra, **changes})

    alternatives: dict[str, Dictionary] = {}
    if dictionary.b_in is None:
        alternatives["b_dec is not to be subtracted from the input"] = changed(
            b_in=torch.zeros_like(dictionary.b_dec)
        )
    elif dictionary.d_in == dictionary.d_out:
        alternatives["b_dec is to be subtracted from the input"] = changed(b_in=None)
    if dictionary.input_normalisation == "none" and dictionary.d_in == dictionary.d_out:
        alternatives["each row is to be normalised by itself (layer norm)"] = changed(
            input_normalisation="layer_norm"
        )
    return alternatives
