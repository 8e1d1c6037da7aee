"""Measures absorption; dictionaries of one model and site share words, activations and probes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.sparse import csr_matrix
from torch import Tensor

from saelab.dictionary import Dictionary, load_dictionary
from saelab.errors import ConfigError
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.sparse import SparseCodes
from saelab.stats.seeds import seeded_generator
from saelab.stats.spread import spread_of

from ..subjects import Subject, describe, load_models, origin_of, subjects_of
from ..suite import Measurement
from .absorbed import Thresholds, absorption_of, hedging_of
from .probes import Array, f1_score, fit_probes, main_latents, rank_latents, sparse_f1
from .suite import AbsorptionConfig
from .words import LETTERS, LetterWords, activations_at, draw_words

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LetterProbes:
    """Words with what the model holds at them, and the probes; shared by dictionaries."""

    words: LetterWords
    inputs: Float[Tensor, "words d_in"]
    """What dictionaries read."""
    targets: Float[Tensor, "words d_out"]
    """What they are to write, in whose space the probes are."""
    letters: list[int]
    """The letters that have words."""
    truth: Bool[Array, "words letters"]
    shuffled: Bool[Array, "words letters"]
    """The same after the letters were shuffled over all words."""
    weights: Float[Array, "d_out letters"]
    recognised: Bool[Array, "words letters"]
    """Whether the probe says that a word has a letter."""
    f1: Float[Array, " letters"]
    """Of each probe on tested words."""
    f1_shuffled: Float[Array, " letters"]
    """Of probes that learnt shuffled letters, on shuffled letters."""


@dataclass(frozen=True, kw_only=True)
class LetterScores:
    """One letter of one dictionary: a row of the parquet file."""

    letter: str
    n_train: int
    n_test: int
    probe_f1: float
    probe_f1_shuffled: float
    counts: bool
    """Whether the probe is good enough for the letter to count."""
    ranked_latents: list[int]
    sparse_f1: list[float]
    """F1 with the first 1, 2, … of the ranked latents."""
    main_latents: list[int]
    main_f1: float
    main_f1_shuffled: float
    """F1 of the best latent for shuffled letters."""
    main_cosine: float | None
    """Mean cosine of the main latents with the probe; None without any."""
    hedging: float | None
    n_recognised: int
    """Tested words of the letter that the probe recognises."""
    absorption_fraction: float | None
    """Mean over these; None without any."""
    full_absorption: float | None


def measure_absorption(
    folders: Sequence[Path], outs: Sequence[Path], config: AbsorptionConfig
) -> Iterator[Measurement]:
    """Measure dictionaries; everything that can be wrong is checked before the first pass.

    Raises:
        ConfigError: a dictionary that writes several hook points.
        ArtifactError: a folder that is no intact dictionary, or does not fit its model.
        ModelError: an unknown model or hook point, an encoder, or a vocabulary without words.
    """
    asked = replace(config, model_dtype=config.model_dtype or "float32")
    subjects = subjects_of([load_dictionary(folder) for folder in folders], outs, asked)
    models = load_models(subjects, config.device)
    groups: dict[Any, list[Subject]] = {}
    for subject in subjects:
        spec = subject.spec
        models[spec.model_key].require_next_token("letters of a prompt's words")
        if len(spec.site.writes) > 1:
            raise ConfigError(
                f"absorption is measured at one hook point; {subject.saved.folder} writes "
                f"{len(spec.site.writes)}: give dictionaries that write one"
            )
        groups.setdefault((spec.model_key, spec.site), []).append(subject)
    for (key, _), group in groups.items():
        shared = learn_letters(models[key], group[0], config)
        for subject in group:
            yield _measurement(subject, shared, config)


def learn_letters(model: LanguageModel, subject: Subject, config: AbsorptionConfig) -> LetterProbes:
    """Words, activations and probes at a dictionary's site."""
    words = draw_words(
        model,
        per_letter=config.words_per_letter,
        test_fraction=config.test_fraction,
        n_examples=config.n_examples,
        n_prompts=config.n_prompts,
        seed=config.seed,
    )
    site = subject.spec.site
    captured = activations_at(model, words, site.hook_points, config.batch_variants)
    inputs = torch.cat([captured[name] for name in site.reads], dim=1)
    return probe_letters(words, inputs, captured[site.writes[0]], config.probe_l2, config.seed)


def probe_letters(
    words: LetterWords,
    inputs: Float[Tensor, "words d_in"],
    targets: Float[Tensor, "words d_out"],
    probe_l2: float,
    seed: int,
) -> LetterProbes:
    """Probes of every letter, and of letters shuffled over the words."""
    letters = sorted({*words.letter.tolist()})
    truth = words.letter.numpy()[:, None] == np.array(letters)
    order = torch.randperm(
        len(words), generator=seeded_generator("absorption", "shuffled letters", seed)
    )
    # Rare letters may have lost all that they had on one side of the split.
    shuffled = truth[order.numpy()]
    x, test = targets.double().cpu().numpy(), words.test.numpy()

    def scores(labels: Array) -> tuple[Array, Array]:
        usable = labels[~test].any(0)
        weights, score = np.zeros((x.shape[1], len(letters))), np.full(labels.shape, -1.0)
        w, bias = fit_probes(x[~test], labels[~test][:, usable], probe_l2)
        weights[:, usable], score[:, usable] = w, x @ w + bias
        return weights, score

    weights, score = scores(truth)
    _, control = scores(shuffled)
    return LetterProbes(
        words=words,
        inputs=inputs,
        targets=targets,
        letters=letters,
        truth=truth,
        shuffled=shuffled,
        weights=weights,
        recognised=score > 0,
        f1=f1_score(score[test], truth[test]),
        f1_shuffled=f1_score(control[test], shuffled[test]),
    )


def in_activation_units(codes: SparseCodes, W_dec: Float[Tensor, "d_sae d_out"]) -> Any:
    """Codes times the norms of what they multiply, as a scipy CSR matrix in float64."""
    norms = torch.linalg.vector_norm(W_dec.double(), dim=1)
    value = codes.scaled_values().double() * norms[codes.latent]
    parts = (value, codes.latent, codes.row_pointer)
    return csr_matrix(
        tuple(part.detach().cpu().numpy() for part in parts), shape=(codes.n_rows, codes.d_sae)
    )


@torch.no_grad()
def score_letters(
    shared: LetterProbes, dictionary: Dictionary, config: AbsorptionConfig
) -> tuple[list[LetterScores], dict[str, list[Any]]]:
    """Every letter of one dictionary, and every recognised word of the letters that count."""
    dictionary = dictionary.to(shared.inputs.device)
    codes = dictionary.encode(shared.inputs)
    matrix, test = in_activation_units(codes, dictionary.W_dec), shared.words.test.numpy()
    train, tested = matrix[~test], matrix[test]
    names = [each.name for each in fields(Thresholds)]
    thresholds = Thresholds(**{name: getattr(config, name) for name in names})
    probes = torch.tensor(shared.weights.T, device=shared.inputs.device)
    rows: list[LetterScores] = []
    by_word: dict[str, list[Any]] = {}
    with progress_bar(len(shared.letters), "absorption", "letters") as bar:
        for index, letter in enumerate(shared.letters):

            def ranked(labels: Array, most: int, column: int = index) -> tuple[Array, Array]:
                learnt, asked = labels[~test, column], labels[test, column]
                if not learnt.any():
                    return np.zeros(0, int), np.zeros(0)
                latents = rank_latents(train, learnt, config.latent_l1, most)
                return latents, sparse_f1(train, learnt, tested, asked, latents)

            latents, f1 = ranked(shared.truth, config.max_k)
            _, control = ranked(shared.shuffled, 1)
            mains = main_latents(latents, f1, config.split_gain)
            words = (shared.truth[:, index] & test & shared.recognised[:, index]).nonzero()[0]
            chosen = torch.from_numpy(words).to(shared.inputs.device)
            absorbed = absorption_of(
                dictionary.encode(shared.inputs[chosen]),
                shared.targets[chosen],
                dictionary.W_dec,
                probes[index],
                mains.tolist(),
                thresholds,
            )
            others = torch.arange(len(shared.letters), device=probes.device) != index
            directions = dictionary.W_dec[torch.from_numpy(mains).to(probes.device)].double()
            unit = probes[index] / probes[index].norm()
            cosines = (directions @ unit) / directions.norm(dim=1).clamp_min(1e-300)
            hedged = [hedging_of(row, probes[index], probes[others]) for row in directions]
            counts = bool(shared.f1[index] > config.least_f1)
            rows.append(
                LetterScores(
                    letter=LETTERS[letter],
                    n_train=int(shared.truth[~test, index].sum()),
                    n_test=int(shared.truth[test, index].sum()),
                    probe_f1=float(shared.f1[index]),
                    probe_f1_shuffled=float(shared.f1_shuffled[index]),
                    counts=counts,
                    ranked_latents=latents.tolist(),
                    sparse_f1=f1.tolist(),
                    main_latents=mains.tolist(),
                    main_f1=float(f1[len(mains) - 1]) if len(mains) else 0.0,
                    main_f1_shuffled=float(control[0]) if len(control) else 0.0,
                    main_cosine=spread_of(cosines.tolist()).mean,
                    hedging=spread_of(hedged).mean,
                    n_recognised=len(words),
                    absorption_fraction=spread_of(absorbed.fraction.tolist()).mean,
                    full_absorption=spread_of(absorbed.full.double().tolist()).mean,
                )
            )
            if counts:
                columns = {
                    "word": [shared.words.text[word] for word in words.tolist()],
                    "letter": [LETTERS[letter]] * len(words),
                    "absorption_fraction": absorbed.fraction.tolist(),
                    "full_absorption": absorbed.full.tolist(),
                    "main": absorbed.main.tolist(),
                    "total": absorbed.total.tolist(),
                    "strongest_other_latent": absorbed.latent.tolist(),
                }
                for name, column in columns.items():
                    by_word.setdefault(name, []).extend(column)
            bar.update(1)
    return rows, by_word


def _measurement(subject: Subject, shared: LetterProbes, config: AbsorptionConfig) -> Measurement:
    rows, by_word = score_letters(shared, subject.saved.dictionary, config)
    counted = [row for row in rows if row.counts]
    enough = len(counted) >= config.least_letters
    notes = [_left_out(rows, config)]
    if not enough:
        notes.append(
            f"Only {len(counted)} letters have probes with an F1 above {config.least_f1:g}, and "
            f"{config.least_letters} are asked for (--least-letters): means over letters are null."
        )
        logger.warning("%s: %s", subject.saved.name, notes[-1])

    def over_letters(name: str) -> Any:
        return spread_of(getattr(row, name) for row in counted if enough)

    names = ("absorption_fraction", "full_absorption", "main_f1", "main_f1_shuffled", "probe_f1")
    names += ("probe_f1_shuffled", "main_cosine", "hedging")
    numbers: dict[str, Any] = {name: over_letters(name).mean for name in names}
    mains = spread_of(float(len(row.main_latents)) for row in counted if enough)
    numbers |= {
        "main_latents": mains.mean,
        "best_latent_f1": spread_of(
            row.sparse_f1[0] if row.sparse_f1 else 0.0 for row in counted if enough
        ).mean,
        "absorption_fraction_sd": over_letters("absorption_fraction").sd,
        "full_absorption_sd": over_letters("full_absorption").sd,
        "main_latents_sd": mains.sd,
        "hedging_random": (len(rows) - 1) / subject.saved.dictionary.d_out,
        "n_letters": len(counted),
        "n_words": len(shared.words),
        "n_recognised": sum(row.n_recognised for row in counted),
    }
    columns = [each.name for each in fields(LetterScores)]
    items = {"letters": {name: [getattr(row, name) for row in rows] for name in columns}}
    if by_word:
        items["words"] = by_word
    origin = origin_of(subject)
    del origin["text"], origin["split"]
    return Measurement(
        name=subject.saved.name,
        content_hash=subject.saved.content_hash,
        out=subject.out,
        numbers=numbers,
        made_from=origin,
        settings={"model_dtype": subject.spec.model_dtype},
        facts={
            name: getattr(config, name)
            for name in (
                *("least_f1", "split_gain", "least_share", "least_cosine", "full_cosine"),
                *("max_k", "least_letters", "n_examples"),
            )
        }
        | {"most": "all" if config.max_absorbing is None else config.max_absorbing},
        data={"rows": rows, "least_f1": config.least_f1, "numbers": numbers},
        rows=items,
        title=f"Absorption in {subject.saved.name}",
        subtitle=f"{describe(subject.saved)}. {len(shared.words):,} words of the model's "
        "vocabulary, each read at its token.",
        notes=tuple(notes),
    )


def _left_out(rows: Sequence[LetterScores], config: AbsorptionConfig) -> str:
    """Which letters do not count, in a sentence."""
    weak = [f"{row.letter} ({row.probe_f1:.2f})" for row in rows if not row.counts]
    few = [letter for letter in LETTERS if letter not in {row.letter for row in rows}]
    parts = [
        f"probes of {', '.join(weak)} have no F1 above {config.least_f1:g}" if weak else "",
        f"the vocabulary has too few words with {', '.join(few)}" if few else "",
    ]
    said = "; ".join(part for part in parts if part)
    return f"Letters left out: {said}." if said else "No letter was left out."
