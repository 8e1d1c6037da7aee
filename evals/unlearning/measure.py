"""Measures unlearning; dictionaries of one data spec share every pass of the untouched model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.cache.config import recorded_name
from saelab.dictionary import SavedDictionary, load_dictionary
from saelab.dictionary.data_spec import DataSpec
from saelab.dictionary.site_rows import site_rows
from saelab.formats.files import sha256_of
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.text.config import TextConfig
from saelab.text.contexts import describe_text
from saelab.text.documents import read_documents
from saelab.text.windows import document_windows

from ..alike import row_settings
from ..core.config import WINDOW
from ..core.rows import blaming
from ..subjects import Subject, by_data_spec, describe, load_models, origin_of, subjects_of
from ..suite import Measurement
from .judged import JudgedText
from .latents import Densities, Firing, choose_latents, densities_of
from .questions import ChoiceQuestion, ask, read_questions
from .suite import UnlearningConfig, require_forget
from .trials import TEXTS, ClampJudge, SharedTexts, best_setting, numbers_of, try_settings

NOTHING_WITHIN = (
    "No setting raises the loss on the text to be forgotten within the bound, so nothing is "
    "clamped and the rise is 0."
)


def measure_unlearning(
    folders: Sequence[Path], outs: Sequence[Path], config: UnlearningConfig
) -> Iterator[Measurement]:
    """Measure dictionaries; everything that can be wrong is checked before the first pass.

    Raises:
        ConfigError: no text to be forgotten, or a dictionary that is opened a layer at a time.
        TextError: a text or a file of questions that cannot be read, or too little of it.
        ArtifactError: a folder that is no intact dictionary, or does not fit its model.
        ModelError: an unknown model or hook point, or an encoder.
        ActivationError: activations or losses that are not finite.
    """
    require_forget(config.forget)
    questions = () if config.questions is None else read_questions(config.questions)
    asked = replace(config, model_dtype=config.model_dtype or "float32")
    subjects = subjects_of([load_dictionary(folder) for folder in folders], outs, asked)
    for subject in subjects:
        subject.saved.dictionary.require_whole()
        for text in _texts_of(subject.spec, config).values():
            next(read_documents(text))
    models = load_models(subjects, config.device)
    for spec, group in by_data_spec(subjects).items():
        model = models[spec.model_key]
        model.require_next_token("losses on what is to be forgotten")
        dictionaries = [subject.saved for subject in group]
        for saved in dictionaries:
            saved.dictionary.to(model.device)
        texts = _texts_of(spec, config)
        densities, mean = _count(model, spec, texts, dictionaries, config)
        shared = _shared(model, spec, texts, questions, mean, config)
        for subject, of_subject in zip(group, densities, strict=True):
            yield _measurement(subject, of_subject, shared, texts, config)


def _texts_of(spec: DataSpec, config: UnlearningConfig) -> dict[str, TextConfig]:
    """Both texts; the part that is not held out chooses latents, the held-out one judges."""

    def given(source: str) -> TextConfig:
        return TextConfig(
            source=recorded_name(source),
            text_field=config.text_field or "text",
            held_out_fraction=0.5,
            seed=config.seed,
            span_characters=config.span_characters,
        )

    retain = spec.text if config.retain is None else given(config.retain)
    return {"forget": given(config.forget), "retain": retain}


@torch.no_grad()
def _count(
    model: LanguageModel,
    spec: DataSpec,
    texts: dict[str, TextConfig],
    dictionaries: Sequence[SavedDictionary],
    config: UnlearningConfig,
) -> tuple[list[Densities], Float[Tensor, " d_out"]]:
    """Densities of every dictionary's latents, and the mean of what is written on retain text."""
    length = min(WINDOW, spec.context_length)
    firing: dict[str, list[Firing]] = {}
    total = torch.zeros(0)
    for name in TEXTS:
        windows = document_windows(
            texts[name],
            model,
            length=length,
            n_windows=-(-config.n_tokens // length),
            split="train",
        ).text
        firing[name] = [Firing.at_start(saved.dictionary.d_sae) for saved in dictionaries]
        n_rows, total = 0, torch.zeros(dictionaries[0].dictionary.d_out).double()
        with progress_bar(windows.tokens.numel(), f"densities, {name}", "tokens") as bar:
            for start in range(0, len(windows), config.batch_contexts):
                batch = windows[start : start + config.batch_contexts]
                captured = model.capture(batch.tokens, spec.site.hook_points)
                rows = site_rows(model, spec, batch, captured, start)
                n_rows += len(rows.targets)
                total += rows.targets.sum(0, dtype=torch.float64).cpu()
                for saved, counts in zip(dictionaries, firing[name], strict=True):
                    with blaming(saved):
                        counts.add(saved.dictionary.encode(rows.inputs))
                bar.update(batch.tokens.numel())
        total /= max(1, n_rows)
    return [densities_of(*both) for both in zip(*firing.values(), strict=True)], total


def _shared(
    model: LanguageModel,
    spec: DataSpec,
    texts: dict[str, TextConfig],
    questions: Sequence[ChoiceQuestion],
    mean: Float[Tensor, " d_out"],
    config: UnlearningConfig,
) -> SharedTexts:
    length = min(WINDOW, spec.context_length)
    windows = {
        name: document_windows(
            text, model, length=length, n_windows=-(-config.n_loss_tokens // length)
        )
        for name, text in texts.items()
    }
    judged = {
        name: JudgedText(model, spec, part.text, config.batch_contexts)
        for name, part in windows.items()
    }
    asked = None
    if questions:
        of_model = ask(model, questions)
        counted = of_model.counted
        asked = JudgedText(model, spec, of_model.text, config.batch_contexts, counted), of_model
    return SharedTexts(judged, windows, judged["forget"].replaced(mean), asked)


def _measurement(
    subject: Subject,
    densities: Densities,
    shared: SharedTexts,
    texts: dict[str, TextConfig],
    config: UnlearningConfig,
) -> Measurement:
    judge = ClampJudge(subject.saved, shared)
    settings = try_settings(judge, densities, config)
    best = best_setting(settings)
    latents = choose_latents(densities, best.retain_density, best.n_latents) if best else ()
    multiple = best.clamp if best else 0.0
    numbers, clamps = numbers_of(judge, densities, latents, multiple, config.seed)
    numbers |= {
        "clamp": best and best.clamp,
        "retain_density": best and best.retain_density,
        "n_within": sum(each.within for each in settings),
    }
    columns = {name: [asdict(each)[name] for each in settings] for name in asdict(settings[0])}
    items = {"settings": columns}
    for name, clamp in clamps.items():
        if len(clamp.latents):
            items[name] = {
                "latent": clamp.latents.tolist(),
                "held_at": clamp.codes.tolist(),
                "density_forget": densities.forget[clamp.latents].tolist(),
                "density_retain": densities.retain[clamp.latents].tolist(),
            }
    origin = origin_of(subject) | {name: describe_text(text) for name, text in texts.items()}
    if config.questions is not None:
        origin["questions"] = {"content_hash": sha256_of(config.questions)}
    return Measurement(
        name=subject.saved.name,
        content_hash=subject.saved.content_hash,
        out=subject.out,
        numbers=numbers,
        made_from=origin,
        settings=row_settings(subject.spec),
        facts={"bound": f"{config.most_retain_rise:.3g}"},
        data={**items, "settings": settings, "best": best, "bound": config.most_retain_rise},
        rows=items,
        title=f"Unlearning with {subject.saved.name}",
        subtitle=f"{describe(subject.saved)}. To be forgotten: {texts['forget'].source}; to be "
        f"retained: {texts['retain'].source}; losses on held-out parts of both.",
        notes=() if best else (NOTHING_WITHIN,),
    )
