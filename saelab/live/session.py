"""One dictionary with its language model, taking text from several people at once.

The text is treated as in training: the BOS token where the manifest says so, the same token
filter, the same norm ceiling, and the normalisation that is folded into the dictionary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.cache.config import TokenFilter
from saelab.cache.rows import RowSelection, select_rows
from saelab.dictionary import SavedDictionary
from saelab.dictionary.data_spec import require_origin, require_width
from saelab.errors import ConfigError
from saelab.model.generation import GeneratedTokens
from saelab.model.gradients import Quantity
from saelab.model.identity import mismatch_with
from saelab.model.language_model import LanguageModel

from .attribution import Attribution, attribute
from .edits import FeatureEdit, apply_edits
from .lock import FairLock
from .reading import Reading

RECORDED = ("model", "hook_point", "row_rule", "norm_ceiling")
BASELINE, STEERED = 0, 1
"""Indices of the plain and the first steered version in what `steer` gives."""


@dataclass(frozen=True, eq=False)
class SharedModel:
    """A language model and the lock under which it runs: its hooks must not see another pass."""

    model: LanguageModel
    lock: FairLock


class LiveSession:
    """Reads texts, attributes and steers with one dictionary.

    Attributes:
        model: the language model; only the methods here run it.
        saved: the dictionary.
        warnings: what does not fit and may change numbers, in sentences.

    Args:
        shared: the model the dictionary was trained on.
        saved: the dictionary, on the model's device.

    Raises:
        ArtifactError: the dictionary does not say what it was trained on, or does not fit the
            model's width.
        ModelError: the model has no such hook point.
        ConfigError: a token filter of a newer version.
    """

    def __init__(self, shared: SharedModel, saved: SavedDictionary):
        self.model, self._lock = shared.model, shared.lock
        self.saved = saved
        origin = saved.manifest.get("made_from", {})
        require_origin(saved, RECORDED)
        self._hook_point, self._ceiling = saved.hook_point, saved.norm_ceiling
        self._filter = TokenFilter.from_json(saved.token_filter)
        self._prepend_bos = bool(origin.get("prepend_bos", self.model.bos_id is not None))
        with self._lock:
            require_width(self.model, saved.site, saved.dictionary, saved.folder)
        self.warnings = self._mismatches()

    def _mismatches(self) -> list[str]:
        model, origin = self.model, self.saved.made_from
        warnings = []
        differs = mismatch_with(model, origin)
        if differs is not None:
            warnings.append(
                f"The dictionary was trained on {origin['model']!r}, but the model loaded is "
                f"another (it had {differs}): its features may mean nothing here."
            )
        if self._prepend_bos and model.bos_id is None:
            warnings.append(
                "The dictionary was trained on texts that start with a BOS token, but this model "
                "has none: the first tokens' codes may be off."
            )
        dtype = str(model.dtype).removeprefix("torch.")
        if origin.get("model_dtype", dtype) != dtype:
            warnings.append(
                f"The dictionary was trained on {origin['model_dtype']} activations; the model "
                f"runs in {dtype}, so codes differ a little from those in training."
            )
        return warnings

    @property
    def bos_rule(self) -> str:
        """What is put before a text, in a sentence."""
        if self._prepend_bos and self.model.bos_id is not None:
            return "A BOS token is put before the text, as in training; it does not count."
        return "Nothing is put before the text, as in training; its first token does not count."

    @property
    def waiting(self) -> int:
        """How many people use the model at this moment or wait for it."""
        return self._lock.queue_length

    @torch.no_grad()
    def read(self, text: str, max_tokens: int) -> Reading:
        """The active features of a text.

        Args:
            text: as typed; what spells a special token stays ordinary text.
            max_tokens: what is beyond is cut off, and counted in the reading.

        Raises:
            ConfigError: a text without a token.
        """
        tokens, n_cut = self._tokens(text, max_tokens)
        with self._lock:
            x = self.model.capture(tokens[None], [self._hook_point])[self._hook_point]
        return self._reading(tokens, x[0], n_cut)

    def attribute(self, text: str, target: int, quantity: Quantity, max_tokens: int) -> Attribution:
        """Attribution of every active feature to a next token after a text.

        Raises:
            ConfigError: a text without a token.
            ModelError: a target outside the vocabulary.
        """
        tokens, n_cut = self._tokens(text, max_tokens)
        with self._lock:
            x, gradients, value = self.model.next_token_gradients(
                tokens, self._hook_point, target, quantity
            )
        reading = self._reading(tokens, x, n_cut)
        return attribute(self.saved.dictionary, reading, x, gradients, value)

    @torch.no_grad()
    def next_tokens(self, text: str, n: int, max_tokens: int) -> list[tuple[int, str, float]]:
        """The likeliest tokens after a text: id, text, probability.

        Raises:
            ConfigError: a text without a token.
        """
        tokens, _ = self._tokens(text, max_tokens)
        with self._lock:
            logits = self.model.run(tokens[None]).logits[0, -1]
        values, ids = logits.double().softmax(0).topk(min(n, logits.shape[0]))
        strings = self.model.token_strings(ids.tolist())
        return list(zip(ids.tolist(), strings, values.tolist(), strict=True))

    def token_of(self, text: str) -> int:
        """The id of the one token that a text is.

        Raises:
            ConfigError: it is none, or several.
        """
        ids = self.model.tokenize([text])[0] if text else []
        if len(ids) == 1:
            return ids[0]
        parts = " + ".join(repr(part) for part in self.model.token_strings(ids)) or "nothing"
        raise ConfigError(
            f"{text!r} is not one token of {self.model.name} but {parts}: give one token, with "
            "its leading space where it starts a word"
        )

    def steer(
        self,
        text: str,
        edits: Sequence[FeatureEdit],
        *,
        n_tokens: int,
        temperature: float | int,
        seed: int,
        max_tokens: int,
        from_end_of_prompt: bool = False,
        factors: Sequence[float] = (1.0,),
    ) -> Iterator[GeneratedTokens]:
        """Write on from a text as the model would, and with features edited.

        Every step gives the tokens and logits of all versions (`BASELINE`, then from `STEERED` on
        one for each factor); the first step's logits are those after the text. Features are edited
        at positions that count under the dictionary's token filter. The lock is held for one step
        at a time.

        Args:
            temperature: of all versions; 0 takes the likeliest token.
            seed: of all versions: equal logits give equal text.
            max_tokens: of the text; what is beyond is cut off at its start, as the end is what
                is continued.
            from_end_of_prompt: edit only at the text's last token and at what is written.
            factors: what the strengths of the edits are multiplied by, for each steered version.

        Raises:
            ConfigError: a text without a token, or a feature the dictionary does not have.
            ModelError: the hook point cannot be edited, or too long a text.
        """
        tokens, _ = self._tokens(text, max_tokens, keep_end=True)
        first_edited = len(tokens) - 1 if from_end_of_prompt else 0

        sets = [
            [replace(edit, strength=factor * edit.strength) for edit in edits] for factor in factors
        ]

        def edit(x: Tensor, read: Tensor, first: int) -> Tensor:
            steered, ids = x[STEERED:].float(), read[STEERED:]
            keep = self._counted(ids, steered, first)
            positions = torch.arange(first, first + x.shape[1], device=x.device)
            where = keep & (positions >= first_edited)
            changed = [
                apply_edits(self.saved.dictionary, *version)
                for version in zip(steered, sets, where, strict=True)
            ]
            return torch.cat([x[:STEERED], torch.stack(changed).to(x.dtype)])

        with self._lock:
            steps = self.model.generate(
                tokens,
                self._hook_point,
                edit,
                n_versions=1 + len(factors),
                n_tokens=n_tokens,
                temperature=temperature,
                seed=seed,
            )
        return self._in_turn(steps)

    @torch.no_grad()
    def perplexity(self, text: str, written: Sequence[int], max_tokens: int) -> float:
        """Of what was written after a text, under the model as it is: exp of the mean loss.

        Raises:
            ConfigError: a text without a token.
        """
        tokens, _ = self._tokens(text, max_tokens, keep_end=True)
        whole = torch.cat([tokens, tokens.new_tensor(written)])[: self.model.max_context]
        with self._lock:
            loss = self.model.run(whole[None]).loss[0, len(tokens) - 1 :]
        return float(loss.double().mean().exp())

    def _in_turn(self, steps: Iterator[GeneratedTokens]) -> Iterator[GeneratedTokens]:
        """The steps, each taken under the lock."""
        while True:
            with self._lock:
                step = next(steps, None)
            if step is None:
                return
            yield step

    def _tokens(
        self, text: str, max_tokens: int, *, keep_end: bool = False
    ) -> tuple[Int[Tensor, " seq"], int]:
        """Token ids with the BOS token of the rule, and how many did not fit."""
        # A surrogate that is no character, as a broken URL gives, cannot be encoded.
        clean = text.encode("utf-8", "replace").decode()
        with self._lock:
            ids = self.model.tokenize([clean])[0] if clean else []
        if not ids:
            raise ConfigError("the text is empty: type a word or more")
        bos = [self.model.bos_id] if self._prepend_bos and self.model.bos_id is not None else []
        room = min(max_tokens, self.model.max_context) - len(bos)
        kept = (ids[-room:] if keep_end else ids[:room]) if room > 0 else []
        return torch.tensor([*bos, *kept], device=self.model.device), len(ids) - len(kept)

    def _reading(
        self, tokens: Int[Tensor, " seq"], x: Float[Tensor, "seq d_in"], n_cut: int
    ) -> Reading:
        selection = self._selection(tokens[None], x[None].float())
        keep = selection.keep[0]
        codes = self.saved.dictionary.encode(x[keep].float()).without_zeros()
        positions = keep.nonzero().flatten()
        return Reading(
            ids=tokens.tolist(),
            tokens=self.model.token_strings(tokens.tolist()),
            counted=keep.cpu().numpy(),
            excluded={reason: n for reason, n in selection.excluded.items() if n},
            n_cut=n_cut,
            position=positions[codes.pair_rows()].cpu().numpy(),
            latent=codes.latent.cpu().numpy(),
            value=codes.value.double().cpu().numpy(),
        )

    def _counted(
        self, tokens: Int[Tensor, "rows seq"], x: Float[Tensor, "rows seq d_in"], first: int
    ) -> Bool[Tensor, "rows seq"]:
        """Which positions count, of some that start at position `first`."""
        # The rule speaks of positions from 0, so what came before is there as empty rows.
        before = tokens[:, :1].expand(-1, first)
        padding = x.new_zeros(x.shape[0], first, x.shape[2])
        selection = self._selection(torch.cat([before, tokens], 1), torch.cat([padding, x], 1))
        return selection.keep[:, first:]

    def _selection(
        self, tokens: Int[Tensor, "rows seq"], x: Float[Tensor, "rows seq d_in"]
    ) -> RowSelection:
        return select_rows(
            self._filter,
            tokens,
            x,
            special_ids=self.model.special_ids,
            bos_id=self.model.bos_id,
            norm_ceiling=self._ceiling,
        )
