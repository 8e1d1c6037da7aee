"""Splices a set of dictionaries into one pass, and each alone; sums by document."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary import load_dictionary
from saelab.dictionary.data_spec import recorded_mean
from saelab.dictionary.site_rows import LiveSplice, site_rows
from saelab.errors import ConfigError
from saelab.formats.evaluation_result import Table
from saelab.formats.files import hash_of
from saelab.memory import keep_freed_memory
from saelab.model.language_model import LanguageModel
from saelab.progress import progress_bar
from saelab.stats.metrics import kl_divergence, require_finite

from ..alike import row_settings
from ..core.losses import LossFindings, windows_of
from ..core.rows import reconstruct
from ..subjects import Subject, load_models, origin_of, subjects_of
from ..suite import Measurement
from .suite import ReplacementConfig

Sums = dict[str, Float[Tensor, " dictionaries"]]
Write = Callable[[int, Tensor], Tensor]


def measure_replacement(
    folders: Sequence[Path], outs: Sequence[Path], config: ReplacementConfig
) -> Iterator[Measurement]:
    """Measure a set; everything that can be wrong is checked before the first pass.

    Raises:
        ConfigError: no dictionaries, or such as cannot be spliced into one pass.
        SaelabError: as the suite core says.
    """
    if not folders:
        raise ConfigError("no dictionary was given: name the folders of a set")
    asked = replace(config, model_dtype=config.model_dtype or "float32")
    saved = [load_dictionary(folder) for folder in folders]
    subjects = subjects_of(saved, [*outs] * len(saved), asked)
    first = subjects[0].spec
    for subject in subjects:
        for name in ("model_key", "text", "context_length", "token_filter"):
            if getattr(subject.spec, name) != getattr(first, name):
                raise ConfigError(
                    f"{subject.saved.folder} and {subjects[0].saved.folder} differ in their "
                    f"{name.replace('_', ' ')}: a set is spliced into one pass"
                )
    model = load_models(subjects, config.device)[first.model_key]
    model.require_next_token("losses")
    keep_freed_memory()
    for subject in subjects:
        subject.saved.dictionary.to(model.device)
    means = [recorded_mean(subject.saved, model.device) for subject in subjects]
    findings, sums = _measure(model, subjects, means, config)
    yield _measurement(subjects, findings, sums, config, outs[0], all(m is not None for m in means))


def _measure(
    model: LanguageModel,
    subjects: Sequence[Subject],
    means: Sequence[Tensor | None],
    config: ReplacementConfig,
) -> tuple[LossFindings, Sums]:
    """Sums by document of the set, then of each dictionary alone; and squared errors by it."""
    windows = windows_of(model, subjects[0].spec, config.n_loss_tokens)
    findings = LossFindings.at_start(windows, 1 + len(subjects))
    names = ("squared", "error", "error_spliced")
    sums = {name: torch.zeros(len(subjects), dtype=torch.float64) for name in names}
    sums["same_top"] = torch.zeros(1, dtype=torch.float64)
    with progress_bar(windows.text.tokens.numel(), "splice", "tokens") as bar:
        for start in range(0, len(windows.text), config.batch_contexts):
            _add_batch(model, subjects, means, config, findings, sums, start)
            bar.update(windows.text[start : start + config.batch_contexts].tokens.numel())
    return findings, sums


@torch.no_grad()
def _add_batch(
    model: LanguageModel,
    subjects: Sequence[Subject],
    means: Sequence[Tensor | None],
    config: ReplacementConfig,
    findings: LossFindings,
    sums: Sums,
    start: int,
) -> None:
    stop = start + config.batch_contexts
    batch = findings.windows.text[start:stop]
    sites = [subject.spec.site for subject in subjects]
    names = tuple(dict.fromkeys(name for site in sites for name in site.hook_points))
    clean = model.run(batch.tokens, capture=names)
    rows = [site_rows(model, s.spec, batch, clean.activations, start) for s in subjects]
    logits = batch.of_text(clean.logits[:, :-1])
    of_windows = findings.windows.document[start:stop, None]
    document = batch.of_text(of_windows.expand(clean.loss.shape)).flatten()

    def add(into: Tensor, per_position: Tensor) -> None:
        require_finite(per_position, "the model's loss")
        into.index_add_(0, document, per_position.flatten().cpu().double())

    def written(index: int, x: Tensor) -> Tensor:
        return reconstruct(subjects[index].saved, x.float())

    def spliced(index: int, x: Tensor) -> Tensor:
        y = written(index, x)
        sums["error_spliced"][index] += _squared(rows[index].targets - y)
        return y

    def run(chosen: Sequence[int], write: Write) -> tuple[Tensor, Tensor]:
        splice = LiveSplice(
            model,
            [sites[index] for index in chosen],
            [rows[index].keep for index in chosen],
            lambda index, x: write(chosen[index], x),
        )
        output = splice.run(batch.tokens)
        return batch.of_text(output.logits[:, :-1]), batch.of_text(output.loss)

    def ablated(index: int, x: Tensor) -> Tensor:
        mean = means[index]
        width = subjects[index].saved.dictionary.d_out
        return (x.new_zeros(width) if mean is None else mean).expand(len(x), -1)

    everyone = range(len(subjects))
    add(findings.positions, torch.ones(len(document)))
    add(findings.clean, batch.of_text(clean.loss))
    zeros = [rows[index].targets.new_zeros(rows[index].targets.shape) for index in everyone]
    add(findings.zero_ablation, run(everyone, lambda index, _: zeros[index])[1])
    add(findings.mean_ablation[0], run(everyone, ablated)[1])
    of_set, loss = run(everyone, spliced)
    add(findings.spliced[0], loss)
    add(findings.kl[0], kl_divergence(logits, of_set))
    sums["same_top"] += (logits.argmax(-1) == of_set.argmax(-1)).sum().cpu()
    for index in everyone:
        targets = rows[index].targets
        sums["squared"][index] += _squared(targets)
        sums["error"][index] += _squared(targets - written(index, rows[index].inputs))
        if config.alone:
            alone, loss = run([index], written)
            add(findings.spliced[1 + index], loss)
            add(findings.kl[1 + index], kl_divergence(logits, alone))


def _squared(x: Tensor) -> float:
    return float(x.double().square().sum())


def _measurement(
    subjects: Sequence[Subject],
    findings: LossFindings,
    sums: Sums,
    config: ReplacementConfig,
    out: Path,
    means_known: bool,
) -> Measurement:
    n, saved = findings.n_positions, [subject.saved for subject in subjects]
    numbers = findings.values(0)
    if not means_known:
        numbers |= {name: None for name in numbers if "mean" in name}
    shares = {name: sums[name] / sums["squared"] for name in ("error", "error_spliced")}
    clean = float(findings.clean.sum()) / n
    cost = findings.spliced[1:].sum(1) / n - clean
    together = float(findings.spliced[0].sum()) / n - clean
    added = float(cost.sum())
    numbers |= {
        "same_top_token": float(sums["same_top"]) / n,
        "error_share": float(shares["error"].mean()),
        "error_share_spliced": float(shares["error_spliced"].mean()),
        "compounding": together / added if config.alone and added > 0 else None,
        "n_dictionaries": len(subjects),
        "n_loss_positions": n,
        "n_loss_documents": len(findings.windows.names),
    }
    columns = [shares["error"], shares["error_spliced"]]
    heads = ("dictionary", "writes", "error share", "error share, all spliced in")
    if config.alone:
        columns += [cost, findings.kl[1:].sum(1) / n]
        heads += ("loss added alone (nats)", "KL alone (nats)")
    lines = zip(*(column.tolist() for column in columns), strict=True)
    table = Table(
        title="Each dictionary of the set",
        columns=heads,
        rows=tuple(
            (each.folder.name, " + ".join(each.site.writes), *line)
            for each, line in zip(saved, lines, strict=True)
        ),
    )
    hashes = [each.content_hash for each in saved]
    origin = origin_of(subjects[0])
    made_from = {name: origin[name] for name in ("model", "model_hash", "text", "split")}
    return Measurement(
        name=f"{saved[0].folder.name} and {len(saved) - 1} more" if saved[1:] else saved[0].name,
        content_hash=hash_of(hashes),
        out=out,
        numbers=numbers,
        made_from=made_from
        | {"hook_points": [str(each.site) for each in saved], "dictionaries": hashes},
        settings=row_settings(subjects[0].spec),
        facts={name: numbers[name] for name in numbers if name.startswith("n_")},
        data={"tables": [table]},
        title=f"{len(saved)} dictionaries spliced in together",
        subtitle=f"{subjects[0].spec.in_words}.",
    )
