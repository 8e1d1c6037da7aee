"""Splices a set of dictionaries into one pass, and each alone; sums by document and hook point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.dictionary import Dictionary, load_dictionary
from saelab.dictionary.data_spec import recorded_mean
from saelab.dictionary.live_splice import LiveSplice, SplicedPart, is_crosscoder, parts_of
from saelab.dictionary.site_rows import SiteRows, site_rows, splice_at
from saelab.errors import ConfigError
from saelab.formats.evaluation_result import Table
from saelab.formats.files import hash_of
from saelab.memory import keep_freed_memory
from saelab.model.language_model import LanguageModel, ModelOutput
from saelab.progress import progress_bar
from saelab.stats.metrics import kl_divergence, require_finite

from ..alike import row_settings
from ..core.losses import LossFindings, windows_of
from ..core.rows import blaming
from ..subjects import Subject, load_models, origin_of, subjects_of
from ..suite import Measurement
from .direct import LogitDirections, effect_size, goes_to_logits, latents_effect_size
from .suite import ReplacementConfig

SUMS = ("squared", "error", "error_spliced", "effect", "error_effect")
Sums = dict[str, Float[Tensor, " hook_points"]]
Alone = tuple[int, tuple[str, ...]]
"""Index of a dictionary and what of it is spliced in."""


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
    measuring = Measuring(model, subjects, config)
    measuring.run()
    yield _measurement(measuring, outs[0])


class Measuring:
    """Sums by document of the set and of what is spliced in alone, and by hook point.

    Attributes:
        findings: of the set, then of `alone`.
        alone: dictionaries, and hook points of crosscoders, that are also spliced in alone.
        written: (index of the dictionary, hook point) of everything that is written.
        sums: over rows, by `written`: squared norms, and sizes of direct effects.
        of_latents: size of all latents' direct effects.
        directions: those that direct effects are along; None where something is not written to
            the residual stream.
        same_top: positions where both models have the same likeliest token.
    """

    def __init__(
        self, model: LanguageModel, subjects: Sequence[Subject], config: ReplacementConfig
    ):
        self.model, self.subjects, self.config = model, subjects, config
        self.sites = [subject.spec.site for subject in subjects]
        self.means = [recorded_mean(subject.saved, model.device) for subject in subjects]
        self.written = [(i, name) for i, site in enumerate(self.sites) for name in site.writes]
        self.alone: list[Alone] = []
        for index, site in enumerate(self.sites if config.alone else ()):
            each = [(name,) for name in site.writes] if is_crosscoder(site) else [site.writes]
            self.alone += [(index, names) for names in each]
        windows = windows_of(model, subjects[0].spec, config.n_loss_tokens)
        self.findings = LossFindings.at_start(windows, 1 + len(self.alone))
        n = len(self.written)
        self.sums: Sums = {name: torch.zeros(n, dtype=torch.float64) for name in SUMS}
        self.of_latents, self.same_top = 0.0, 0
        direct = all(goes_to_logits(model, name) for _, name in self.written)
        self.directions = LogitDirections(model.logit_lens(), model.device) if direct else None

    @torch.no_grad()
    def run(self) -> None:
        """All windows."""
        text = self.findings.windows.text
        with progress_bar(text.tokens.numel(), "splice", "tokens") as bar:
            for start in range(0, len(text), self.config.batch_contexts):
                self._add_batch(start, start + self.config.batch_contexts)
                bar.update(text[start : start + self.config.batch_contexts].tokens.numel())

    def _add_batch(self, start: int, stop: int) -> None:
        findings, model = self.findings, self.model
        batch = findings.windows.text[start:stop]
        stream = f"blocks.{model.n_layers - 1}.hook_resid_post"
        names = {name for site in self.sites for name in site.hook_points}
        clean = model.run(batch.tokens, capture=(*names, *({stream} - names)))
        rows = [site_rows(model, s.spec, batch, clean.activations, start) for s in self.subjects]
        logits = batch.of_text(clean.logits[:, :-1])
        of_windows = findings.windows.document[start:stop, None]
        document = batch.of_text(of_windows.expand(clean.loss.shape)).flatten()

        def add(into: Tensor, per_position: Tensor) -> None:
            require_finite(per_position, "the model's loss")
            into.index_add_(0, document, per_position.flatten().cpu().double())

        def add_spliced(number: int, output: ModelOutput) -> Tensor:
            of_text = batch.of_text(output.logits[:, :-1])
            add(findings.spliced[number], batch.of_text(output.loss))
            add(findings.kl[number], kl_divergence(logits, of_text))
            return of_text.argmax(-1)

        add(findings.positions, torch.ones(len(document)))
        add(findings.clean, batch.of_text(clean.loss))
        nothing: list[Tensor | None] = [None] * len(rows)
        for into, means in (
            (findings.zero_ablation, nothing),
            (findings.mean_ablation[0], self.means),
        ):
            add(into, batch.of_text(self._ablated(batch.tokens, rows, means).loss))
        together = LiveSplice(model, [p for i, r in enumerate(rows) for p in self._parts(i, r)])
        tops = add_spliced(0, together.run(batch.tokens))
        self.same_top += int((logits.argmax(-1) == tops).sum())
        for index, of_one in enumerate(rows):
            direction = None
            if self.directions is not None:
                top = clean.logits.argmax(-1)[of_one.keep]
                direction = self.directions.at(clean.activations[stream][of_one.keep], top)
            hat = self._add_rows(index, of_one, together.written, direction)
            for number, (owner, chosen) in enumerate(self.alone, start=1):
                if owner == index:
                    add_spliced(number, self._alone_run(batch.tokens, index, chosen, of_one, hat))

    def _ablated(
        self, tokens: Tensor, rows: Sequence[SiteRows], means: Sequence[Tensor | None]
    ) -> ModelOutput:
        """A pass with a mean, or zero, in place of everything that is written."""
        splice = {}
        for site, of_one, mean in zip(self.sites, rows, means, strict=True):
            zeros = torch.zeros_like(of_one.targets)
            put = zeros if mean is None else mean.expand_as(zeros)
            splice |= splice_at(self.model, site, of_one.keep, put)
        return self.model.run(tokens, splice)

    def _parts(self, index: int, rows: SiteRows) -> list[SplicedPart]:
        saved = self.subjects[index].saved

        def replace(source: Dictionary, x: Tensor) -> Tensor:
            with blaming(saved):
                written = source.to(x.device)(x.float())
                require_finite(written, "the reconstruction")
            return written

        return parts_of(index, saved.dictionary, self.sites[index], rows, replace)

    def _alone_run(
        self, tokens: Tensor, index: int, chosen: tuple[str, ...], rows: SiteRows, hat: Tensor
    ) -> ModelOutput:
        """A pass with one dictionary, or one hook point of a crosscoder, spliced in."""
        site = self.sites[index]
        if is_crosscoder(site):
            splices = splice_at(self.model, site, rows.keep, hat)
            return self.model.run(tokens, {name: splices[name] for name in chosen})
        return LiveSplice(self.model, self._parts(index, rows)).run(tokens)

    def _add_rows(
        self, index: int, rows: SiteRows, spliced: Mapping[str, Tensor], u: Tensor | None
    ) -> Tensor:
        """Add what a dictionary makes of the untouched model's rows, which is returned."""
        saved = self.subjects[index].saved
        with blaming(saved):
            codes = saved.dictionary.encode(rows.inputs)
            hat = saved.dictionary.decode(codes)
            require_finite(hat, "the reconstruction")
        site = self.sites[index]
        widths = [self.model.width_at(name) for name in site.writes]
        parts = zip(site.writes, rows.targets.split(widths, 1), hat.split(widths, 1), strict=True)
        for name, y, written in parts:
            number, error = self.written.index((index, name)), y - written
            values = [_squared(y), _squared(error), _squared(y - spliced[name])]
            if u is not None:
                values += [effect_size(written, u), effect_size(error, u)]
            for sums, value in zip(self.sums.values(), values, strict=False):
                sums[number] += value
        if u is not None:
            self.of_latents += latents_effect_size(saved.dictionary, codes, u)
        return hat

    def numbers(self) -> dict[str, float | int | None]:
        """The numbers of the whole set."""
        findings, n = self.findings, self.findings.n_positions
        numbers: dict[str, float | int | None] = dict(findings.values(0))
        if any(mean is None for mean in self.means):
            numbers |= {name: None for name in numbers if "mean" in name}
        sums = self.sums
        effect, of_error = float(sums["effect"].sum()), float(sums["error_effect"].sum())
        clean = float(findings.clean.sum()) / n
        together = float(findings.spliced[0].sum()) / n - clean
        added = sum(cost for cost, _ in self.costs())
        return numbers | {
            "same_top_token": self.same_top / n,
            "error_share": float((sums["error"] / sums["squared"]).mean()),
            "error_share_spliced": float((sums["error_spliced"] / sums["squared"]).mean()),
            "error_effect_share": share_of(of_error, effect),
            "logit_completeness": share_of(self.of_latents, of_error),
            "compounding": together / added if added > 0 else None,
            "n_dictionaries": len(self.subjects),
            "n_hook_points": len(self.written),
            "n_loss_positions": n,
            "n_loss_documents": len(findings.windows.names),
        }

    def costs(self) -> list[tuple[float, float]]:
        """Loss added and KL of everything that was spliced in alone, nats."""
        findings, n = self.findings, self.findings.n_positions
        added = (findings.spliced[1:] - findings.clean).sum(1) / n
        return [*zip(added.tolist(), (findings.kl[1:].sum(1) / n).tolist(), strict=True)]

    def tables(self) -> list[Table]:
        """A row for each hook point that is written, and for each that was spliced in alone."""
        names, sums = [subject.saved.folder.name for subject in self.subjects], self.sums
        effects = zip(sums["error_effect"].tolist(), sums["effect"].tolist(), strict=True)
        columns = (
            (sums["error"] / sums["squared"]).tolist(),
            (sums["error_spliced"] / sums["squared"]).tolist(),
            [share_of(*each) for each in effects],
        )
        lines = zip(self.written, *columns, strict=True)
        heads = ("error share", "error share, all spliced in", "error's share of direct effect")
        tables = [
            Table(
                title="What is left out at each hook point",
                columns=("dictionary", "writes", *heads),
                rows=tuple((names[index], name, *line) for (index, name), *line in lines),
            )
        ]
        if self.alone:
            rows = zip(self.alone, self.costs(), strict=True)
            tables.append(
                Table(
                    title="Spliced in alone",
                    columns=("dictionary", "writes", "loss added (nats)", "KL (nats)"),
                    rows=tuple((names[i], " + ".join(of), *cost) for (i, of), cost in rows),
                )
            )
        return tables


def share_of(a: float, b: float) -> float | None:
    """a / (a + b); None where that is not defined."""
    return a / (a + b) if a + b > 0 else None


def _squared(x: Tensor) -> float:
    return float(x.double().square().sum())


def _measurement(measuring: Measuring, out: Path) -> Measurement:
    subjects, numbers = measuring.subjects, measuring.numbers()
    saved = [subject.saved for subject in subjects]
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
        data={"tables": measuring.tables()},
        title=f"{len(saved)} dictionaries spliced in together",
        subtitle=f"{subjects[0].spec.in_words}.",
    )
