"""Supervised dictionaries as saved dictionaries, which every tool that reads dictionaries reads.

In the suite the codes come from labels and are 0 or 1. The folder needs an encoder that works
without labels: each latent has a linear probe for its value, fitted by ridge regression of the 0/1
codes on the fitting activations, and a threshold, the one with the best F1 there (`jumprelu`).
Decoder and bias are the features themselves. So what reads decoders (consistency, comparisons,
cosines) sees the supervised features, and what encodes sees the best linear guess of the labels,
with codes near 1. `load_supervised` gives back the dictionary whose codes come from labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.dictionary import Dictionary, load_dictionary, save_dictionary
from saelab.errors import ArtifactError
from saelab.formats.manifest import require_fields
from saelab.model.language_model import LanguageModel

from .dictionaries import SupervisedDictionary
from .labels import Design
from .sites import Site, head_slice
from .tasks.interface import Prompt, Task

METHOD = "supervised"
RIDGE = 1e-4
"""Added to the activations' covariance, as a share of its mean diagonal."""


def save_supervised(
    folder: Path,
    dictionary: SupervisedDictionary,
    *,
    model: LanguageModel,
    task: Task,
    site: Site,
    prompts: Sequence[Prompt],
    activations: Float[Tensor, "prompts d_in"],
    parametrisation: str = "independent",
) -> str:
    """Save a supervised dictionary with an encoder that needs no labels.

    Args:
        folder: created if needed.
        dictionary: what to save.
        model: the model of the activations.
        task: the task of the labels.
        site: where the activations are.
        prompts: the fitting prompts.
        activations: theirs at the site.
        parametrisation: the one the dictionary was fitted with.

    Returns:
        The content hash.
    """
    index = dictionary.design.index([prompt.labels for prompt in prompts])
    part = head_slice(model, site)
    return save_dictionary(
        folder,
        with_linear_encoder(dictionary, index, activations),
        self_test_inputs=activations,
        training={
            "method": METHOD,
            "kind": dictionary.kind,
            "parametrisation": parametrisation,
            "attributes": {name: list(v) for name, v in dictionary.design.attributes.items()},
            "nested": dict(dictionary.design.nested),
            "counts": dictionary.counts.tolist(),
            "n_prompts": len(prompts),
            "latents": dictionary.design.feature_names,
            "encoder": "linear probes of the labels with the threshold of best F1",
        },
        made_from={
            "model": model.name,
            "model_hash": model.content_hash,
            "model_dtype": str(model.dtype).removeprefix("torch."),
            "hook_point": site.hook_point,
            "task": task.name,
            "site": str(site),
            "entries": [part.start or 0, part.stop or model.width_at(site.hook_point)],
        },
    )


def load_supervised(folder: Path) -> SupervisedDictionary:
    """A supervised dictionary whose codes come from labels of its own design attributes.

    Where it was fitted with a parametrisation that is not "independent", its codes are those of
    labels by the design's attributes ("io,pos" and so on).

    Raises:
        ArtifactError: the folder is no intact dictionary, or not a supervised one.
    """
    saved = load_dictionary(folder)
    training = saved.manifest.get("config", {})
    if not isinstance(training, dict) or training.get("method") != METHOD:
        raise ArtifactError(
            f"{folder} is a dictionary but not a supervised one: its features have no labels"
        )
    fields = {"kind": str, "attributes": dict, "nested": dict, "counts": list}
    require_fields(training, fields, folder / "saelab.json")
    design = Design(
        {name: tuple(values) for name, values in training["attributes"].items()},
        training["nested"],
    )
    features, bias = saved.dictionary.W_dec, saved.dictionary.b_dec
    counts = torch.tensor(training["counts"], dtype=torch.int64)
    if not design.n_features == len(counts) == len(features):
        raise ArtifactError(
            f"{folder} has {len(features)} latents, {design.n_features} values and {len(counts)} "
            "counts, which should be one number: its manifest was edited; save it again"
        )
    return SupervisedDictionary(training["kind"], design, features, bias, counts)


def with_linear_encoder(
    dictionary: SupervisedDictionary,
    index: Int[Tensor, "prompts attributes"],
    x: Float[Tensor, "prompts d_in"],
) -> Dictionary:
    """The dictionary with a linear probe and a threshold for each latent.

    Args:
        dictionary: features and bias.
        index: columns of each fitting prompt.
        x: their activations.
    """
    size = dictionary.design.n_features
    codes = torch.zeros(len(x), size, dtype=torch.float64).scatter_(1, index, 1.0)
    centred = x.double().cpu() - dictionary.bias.double()
    covariance = centred.T @ centred
    covariance.diagonal().add_(RIDGE * covariance.diagonal().mean().clamp_min(1e-30))
    frequency = codes.mean(0)
    encoder = torch.linalg.solve(covariance, centred.T @ (codes - frequency))
    threshold = best_thresholds(centred @ encoder + frequency, codes > 0)
    return Dictionary(
        "jumprelu",
        W_enc=encoder.float(),
        b_enc=frequency.float(),
        W_dec=dictionary.W_dec.float(),
        b_dec=dictionary.bias.float(),
        threshold=threshold.float(),
    )


def best_thresholds(
    scores: Float[Tensor, "prompts features"], truth: Tensor
) -> Float[Tensor, " features"]:
    """The positive threshold of best F1 for each column, halfway between two scores.

    A column that is never true gets the largest score, so it is never on.
    """
    ordered, order = scores.sort(0, descending=True)
    hits = truth.gather(0, order).double().cumsum(0)
    chosen = torch.arange(1, len(scores) + 1, dtype=torch.float64)[:, None]
    f1 = 2 * hits / (chosen + truth.sum(0))
    below = torch.cat([ordered[1:], ordered[-1:] - 1])
    # Equal scores cannot be told apart, and codes have to be positive.
    f1 = torch.where((ordered > below) & (ordered > 0), f1, -1.0)
    best = f1.argmax(0, keepdim=True)
    middle = (ordered.gather(0, best) + below.gather(0, best).clamp_min(0)).squeeze(0) / 2
    return torch.where(truth.any(0), middle, ordered[0].clamp_min(0))
