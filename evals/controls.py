"""Control dictionaries: what a suite says of dictionaries that have learnt nothing.

Trained dictionaries have been found to score hardly better than untrained ones (arXiv 2602.14111),
so a suite that can be run on controls is run on them too, in the same pass:

* `random`: as many latents, each along a random direction and with the threshold at which it fires
  on as many rows as the trained one, so L0 and densities are equal;
* `pca`: both directions of each principal component, the k strongest of a row active;
* `neurons`: both directions of each channel of the hook point, likewise; k is the trained L0;
* `random-model`: `random` on the same model with the entries of its weight matrices shuffled.

They are ordinary dictionaries, saved in `controls` beside the results. They are fitted to the very
rows that are judged, which favours them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.cache.config import DataOverrides
from saelab.config import SHUFFLED
from saelab.dictionary import Dictionary, SavedDictionary, load_dictionary, save_dictionary
from saelab.dictionary.data_spec import DataSpec
from saelab.dictionary.layered import LayeredDictionary
from saelab.dictionary.site_rows import evaluated_rows
from saelab.errors import ArtifactError
from saelab.formats.chart import Axis, Chart, ReferenceLine, Series
from saelab.formats.evaluation_result import EvaluationResult, MeasuredMetric, Table
from saelab.model.devices import resolve_device

from .subjects import Subject, by_data_spec, load_models, subjects_of
from .suite import CONTROLS as CONTROL_SECTION

logger = logging.getLogger(__name__)

SHUFFLED_MODEL = "random-model"
TOKENS = 16_384
"""Tokens of held-out text that controls are fitted to."""
SEED = 20_260_214
LATENTS_AT_ONCE = 1024


@dataclass(frozen=True)
class Fit:
    """What a control takes from a dictionary and its rows."""

    rows: Float[Tensor, "rows d_in"]
    """The rows."""
    n_active: Int[Tensor, " d_sae"]
    """Rows on which each latent fires."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Where the control's rows are other than the dictionary's: what its manifest says instead."""

    @property
    def k(self) -> int:
        """Latents active on a row in the mean, at least one."""
        return max(1, round(float(self.n_active.sum()) / len(self.rows)))


def random_control(fit: Fit) -> Dictionary:
    """Random directions that fire as often as the trained latents do.

    f = relu(x·r − t) with r uniform on the sphere and t the threshold that leaves as many rows;
    one factor for all codes and the output bias are fitted by least squares.
    """
    d_sae, d_in = len(fit.n_active), fit.rows.shape[1]
    generator = torch.Generator().manual_seed(SEED)
    directions = torch.randn(d_sae, d_in, generator=generator).to(fit.rows)
    directions /= directions.norm(dim=1, keepdim=True)
    thresholds = torch.empty_like(directions[:, 0])
    written = torch.zeros_like(fit.rows)
    for chunk in torch.arange(d_sae, device=fit.rows.device).split(LATENTS_AT_ONCE):
        projected = fit.rows @ directions[chunk].T
        thresholds[chunk] = firing_thresholds(projected, fit.n_active[chunk])
        written += (projected - thresholds[chunk]).relu() @ directions[chunk]
    mean, mean_written = fit.rows.mean(dim=0), written.mean(dim=0)
    written -= mean_written
    factor = float(((fit.rows - mean) * written).sum() / written.square().sum().clamp_min(1e-12))
    factor = max(factor, 1e-6)  # codes are not negative
    b_dec = mean - factor * mean_written
    return Dictionary(
        "relu",
        W_enc=factor * directions.T,
        W_dec=directions,
        b_enc=factor * (directions @ b_dec - thresholds),
        b_dec=b_dec,
    )


def firing_thresholds(
    projected: Float[Tensor, "rows latents"], n_active: Int[Tensor, " latents"]
) -> Float[Tensor, " latents"]:
    """The threshold of each latent that as many rows exceed as it is to fire on."""
    ordered = projected.sort(dim=0, descending=True).values
    margin = (ordered[:1] - ordered[-1:]).clamp_min(1e-6)
    ordered = torch.cat([ordered[:1] + margin, ordered, ordered[-1:] - margin])
    # Between the last row that is to exceed it and the first that is not.
    above, below = (ordered.gather(0, (n_active + step)[None])[0] for step in (0, 1))
    return (above + below) / 2


def pca_control(fit: Fit) -> Dictionary:
    """Both directions of each principal component of the rows."""
    centred = (fit.rows - fit.rows.mean(dim=0)).double()
    return basis_control(torch.linalg.eigh(centred.T @ centred).eigenvectors.T.flip(0), fit)


def neuron_control(fit: Fit) -> Dictionary:
    """Both directions of each channel of the hook point."""
    return basis_control(torch.eye(fit.rows.shape[1]), fit)


def basis_control(basis: Float[Tensor, "d_in d_in"], fit: Fit) -> Dictionary:
    """Both directions of each vector of an orthonormal basis, the k strongest of a row active."""
    directions = torch.cat([basis, -basis]).to(fit.rows)
    return Dictionary(
        "topk",
        W_enc=directions.T,
        W_dec=directions,
        b_enc=torch.zeros_like(directions[:, 0]),
        b_dec=fit.rows.mean(dim=0),
        k=min(fit.k, len(basis)),
    )


CONTROLS: dict[str, Callable[[Fit], Dictionary]] = {
    "random": random_control,
    "pca": pca_control,
    "neurons": neuron_control,
    SHUFFLED_MODEL: random_control,
}
NAMES = {
    "random": "random directions",
    "pca": "principal components",
    "neurons": "channels",
    SHUFFLED_MODEL: "shuffled model",
    "frozen": "frozen decoder",
    "soft-frozen": "soft-frozen decoder",
}


def control_folder(out: Path, kind: str) -> Path:
    """Where the control of a dictionary lies whose results go to `out`."""
    return out / "controls" / kind


def make_controls(
    folders: Sequence[Path], outs: Sequence[Path], kinds: Sequence[str], config: DataOverrides
) -> dict[Path, Path]:
    """Build the controls that are not there yet; those of one data spec share a pass.

    Controls are of sparse autoencoders: what reads or writes elsewhere has none.

    Returns:
        Dictionary folder -> result folder of each control.

    Raises:
        SaelabError: what a suite would refuse about the dictionary or its text.
    """
    made: dict[Path, Path] = {}
    missing: list[Subject] = []
    for subject in subjects_of([load_dictionary(folder) for folder in folders], outs, config):
        dictionary = subject.saved.dictionary
        if not subject.saved.site.is_autoencoder or isinstance(dictionary, LayeredDictionary):
            continue
        has_model = subject.spec.adopted is None
        of_subject = {
            kind: control_folder(subject.out, kind)
            for kind in kinds
            if kind != SHUFFLED_MODEL or has_model
        }
        made |= {folder: folder / "evals" for folder in of_subject.values()}
        if not all(_is_control_of(folder, subject.saved) for folder in of_subject.values()):
            missing.append(subject)
    models = load_models([s for s in missing if s.spec.adopted is None], config.device)
    for spec, group in by_data_spec(missing).items():
        model = models[spec.model_key] if spec.adopted is None else None
        device = resolve_device(config.device) if model is None else model.device
        fits = _fits(evaluated_rows(model, spec, TOKENS, 4, device), group, device)
        for kind in kinds:
            if kind == SHUFFLED_MODEL and model is None:
                continue
            of_kind = fits if kind != SHUFFLED_MODEL else _shuffled(spec, fits, config.device)
            for subject, fit in zip(group, of_kind, strict=True):
                _save(kind, CONTROLS[kind](fit), subject, fit)
    return made


def _shuffled(spec: DataSpec, fits: Sequence[Fit], device: str) -> list[Fit]:
    """The same densities on rows of the model with shuffled weights, whose norms are others."""
    spec = replace(
        spec,
        model=SHUFFLED + spec.model,
        norm_ceilings=tuple(None for _ in spec.norm_ceilings),
    )
    model = spec.load_model(device)
    rows = torch.cat([each.inputs for each in evaluated_rows(model, spec, TOKENS, 4, model.device)])
    origin = {
        "model": spec.model,
        "model_hash": model.content_hash,
        "norm_ceiling": None,
        "mean": rows.double().mean(dim=0).tolist(),
    }
    return [
        Fit(rows, (fit.n_active * len(rows) / len(fit.rows)).round().long(), origin) for fit in fits
    ]


@torch.no_grad()
def _fits(rows: Iterator[Any], group: Sequence[Subject], device: torch.device) -> list[Fit]:
    dictionaries = [subject.saved.dictionary.to(device) for subject in group]
    counts = [torch.zeros(each.d_sae, dtype=torch.long, device=device) for each in dictionaries]
    kept = []
    for batch in rows:
        kept.append(batch.inputs)
        for dictionary, count in zip(dictionaries, counts, strict=True):
            codes = dictionary.encode(batch.inputs)
            count += codes.latent[codes.value != 0].bincount(minlength=dictionary.d_sae)
    inputs = torch.cat(kept)
    return [Fit(inputs, count) for count in counts]


def _is_control_of(folder: Path, saved: SavedDictionary) -> bool:
    """Whether a control of this very dictionary lies there."""
    try:
        return load_dictionary(folder).manifest["config"]["of"] == saved.content_hash
    except (ArtifactError, KeyError):
        return False


def _save(kind: str, control: Dictionary, subject: Subject, fit: Fit) -> None:
    folder = control_folder(subject.out, kind)
    logger.info("control %s of %s: %s", NAMES[kind], subject.saved.name, folder)
    save_dictionary(
        folder,
        control.cpu(),
        self_test_inputs=fit.rows.cpu(),
        training={
            "method": "control",
            "control": kind,
            "of": subject.saved.content_hash,
            "rows": len(fit.rows),
        },
        made_from={**subject.saved.made_from, **fit.origin},
        seed=SEED,
        site=subject.spec.site,
    )


def frozen_twins(folders: Sequence[Path]) -> list[dict[str, int]]:
    """For each dictionary, those among all that differ from it by a decoder that hardly learnt.

    Returns:
        By kind of decoder, `frozen` or `soft-frozen`, the index of the first such dictionary.
    """
    trained = [load_dictionary(folder) for folder in folders]
    decoders = [saved.manifest["config"].get("options", {}).get("decoder") for saved in trained]
    alike = [
        (
            saved.manifest["config"].get("method"),
            saved.manifest["config"].get("target_l0"),
            saved.dictionary.d_sae,
            saved.manifest.get("site"),
            saved.made_from.get("cache_hash"),
        )
        for saved in trained
    ]
    return [
        {
            decoders[other]: other
            for other in reversed(range(len(trained)))
            if not decoders[index] and decoders[other] and alike[other] == alike[index]
        }
        for index in range(len(trained))
    ]


def beside_controls(
    result: EvaluationResult,
    controls: Mapping[str, EvaluationResult],
    skyline: Mapping[str, str | float | int],
) -> EvaluationResult:
    """A result with its headline numbers beside those of controls.

    Args:
        result: of a trained dictionary.
        controls: results of its controls in the same suite, by kind.
        skyline: best possible value by number, as `Suite.skyline` has it.
    """
    values = {metric.name: metric.value for metric in result.metrics}
    judged = [metric for metric in result.metrics if metric.name in result.headline]
    judged = [metric for metric in judged if metric.better != "neither"]
    kinds = [kind for kind in NAMES if kind in controls]
    rows, shares = [], {}
    for metric in judged:
        of_controls = [controls[kind].value(metric.name) for kind in kinds]
        best = skyline.get(metric.name)
        best = values.get(best) if isinstance(best, str) else best
        shares[metric.name] = share_of_the_way(metric, of_controls, best)
        score = [metric.name, metric.better, metric.value, *of_controls, best, shares[metric.name]]
        rows.append(tuple(score))
    table = Table(
        title="Beside controls",
        columns=(
            "number",
            "better",
            "trained",
            *(NAMES[kind] for kind in kinds),
            "best possible",
            "share of the way",
        ),
        rows=tuple(rows),
        section=CONTROL_SECTION,
        note="Share of the way: (trained − control) / (best possible − control), from the best "
        "control; at 0 the dictionary scores as one that has learnt nothing, below 0 worse.",
    )
    charts = [chart for chart in result.charts if chart.section != CONTROL_SECTION]
    if chart := _share_chart(shares):
        charts.append(chart)
    others = [each for each in result.tables if each.section != CONTROL_SECTION]
    return replace(result, tables=(*others, table), charts=tuple(charts))


def share_of_the_way(
    metric: MeasuredMetric, controls: Sequence[float | int | None], best: float | int | None
) -> float | None:
    """(score − control) / (best − control) from the best control; None where undefined."""
    known = [value for value in controls if value is not None]
    if metric.value is None or best is None or not known:
        return None
    control = max(known) if metric.better == "higher" else min(known)
    beyond = best - control if metric.better == "higher" else control - best
    # A control that is as good as possible leaves no way to go.
    return (metric.value - control) / (best - control) if beyond > 0 else None


def _share_chart(shares: Mapping[str, float | None]) -> Chart | None:
    known = {name: share for name, share in shares.items() if share is not None}
    if not known:
        return None
    return Chart(
        name="share_of_the_way",
        title="From the best control to the best possible",
        caption="Share of the way from the best control (0) to the best possible value (1) that "
        "each headline number has gone.",
        x=Axis(title="share of the way", low=min(0, *known.values()), high=1),
        y=Axis(title=""),
        series=(
            Series(name="trained", x=[*known.values()], y=[*known.keys()], mark="bars", axis="x"),
        ),
        # The caption says what they are: words there would be written over the first bar.
        lines=tuple(ReferenceLine(value=value, label="", axis="x") for value in (0, 1)),
        section=CONTROL_SECTION,
    )
