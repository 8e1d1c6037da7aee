"""The language model: tokens in, activations, gradients, logits and losses out.

Hook points have TransformerLens names on every architecture that its bridge supports. Weights are
the raw ones (no folded layer norm, no centring).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ModelError, first_line, panics_as_errors

from .devices import resolve_device, warn_if_bfloat16_is_slow
from .generation import Edit, GeneratedTokens, generate_tokens
from .gradients import LossGradients, Quantity, next_token_gradients, next_token_loss
from .hooked_forward import HookedForward, Visit, boot_bridge, keeping
from .hugging_face import is_encoder, load_hugging_face, runs_own_code, shuffle_weights
from .logit_lens import Lens, lens_of
from .model_files import ModelFiles, list_models, resolve_model
from .patched_runs import PatchedRuns, capture_after, run_last_position
from .token_bytes import token_bytes

__all__ = ["LanguageModel", "ModelOutput", "list_models", "load_language_model"]

logger = logging.getLogger(__name__)

DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float32", "float16", "float64")}
DOCUMENT_SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True)
class ModelOutput:
    """What a full forward pass gives."""

    logits: Float[Tensor, "batch seq d_vocab"]
    """In the model's dtype."""
    loss: Float[Tensor, "batch seq-1"]
    """Next-token loss in nats, float32: entry i is about token i + 1."""
    activations: dict[str, Tensor] = field(default_factory=dict)
    """Hook point -> [batch seq d_in], those asked for."""


def load_language_model(
    name: str,
    *,
    dtype: str = "bfloat16",
    device: str = "auto",
    model_kwargs: Sequence[str] = (),
) -> LanguageModel:
    """Load a causal language model, or an encoder; without a network where its files are local.

    A model that needs Python code of its own loads only where the environment variable
    SAELAB_TRUST_REMOTE_CODE is 1.

    Args:
        name: as `resolve_model` takes it.
        dtype: "bfloat16", "float32", "float16" or "float64" (for checks), of all computation.
        device: "cpu", "cuda", "cuda:1" …, or "auto": cuda where there is one.
        model_kwargs: for transformers, each "name=value" or a JSON object: `device_map=auto`,
            `attn_implementation=eager`, `load_in_8bit=true` (with bitsandbytes).

    Raises:
        ConfigError: `model_kwargs` that saelab or this machine does not take.
        ModelError: no such model, or one that transformer_lens or this machine cannot run.

    Example:
        >>> model = saelab.load_language_model(model_folder, dtype="float32")
        >>> tokens = torch.tensor([[model.bos_id, 5, 6]])
        >>> model.capture(tokens, ["blocks.1.hook_resid_post"])["blocks.1.hook_resid_post"].shape
        torch.Size([1, 3, 32])
    """
    if dtype not in DTYPES:
        raise ModelError(f"model dtype {dtype!r} is unknown: expected one of {', '.join(DTYPES)}")
    resolved = resolve_device(device)
    if dtype == "bfloat16":
        warn_if_bfloat16_is_slow(
            resolved,
            "the model",
            "--model-dtype float32 (the same for the cache and all that is made of it, which "
            "record the dtype)",
        )
    files = resolve_model(name)
    model, tokenizer = load_hugging_face(
        files.name, files.folder, DTYPES[dtype], resolved, model_kwargs
    )
    if files.shuffled:
        shuffle_weights(model)
    if runs_own_code(model, tokenizer):
        logger.warning("%s runs Python code of its own, from %s", files.name, files.folder)
        files = replace(files, runs_code=True)
    # The bridge rewires the model it is given; the copy keeps the library's own forward pass
    # and, through the memo, the very same weights.
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    plain = copy.deepcopy(model, shared)
    twins = dict(zip(map(id, model.modules()), plain.modules(), strict=True))
    bridge = boot_bridge(
        files.name, files.folder, model, copy.deepcopy(tokenizer), DTYPES[dtype], resolved
    )
    return LanguageModel(files, tokenizer, HookedForward(bridge, plain, twins))


class LanguageModel:
    """A frozen language model with hook points; made by `load_language_model`.

    Tokens are ids on any device, hook points have TransformerLens names. An encoder gives
    activations; what is about the next token it refuses.

    Attributes:
        name: as given by the user.
        n_layers: number of blocks.
        d_model: width of the residual stream.
        n_heads, n_key_value_heads, d_head: of a block's attention; 0 where it has none.
        is_encoder: whether tokens see those after them too, so that none is predicted.
        d_vocab: entries of the logits.
        max_context: longest context in tokens.
        dtype, device: of weights and activations.
        bos_id: the token that starts a context, an encoder's CLS; None where the model has none.
        separator_id: the token put between documents; None where the model has none.
        special_ids: every special token of the tokenizer.
        end_ids: tokens that end a text: the tokenizer's EOS and the separator.
        tokenizer: the one transformers loaded.
        control_strings: what special tokens are spelt.
        tokenizer_size: entries of the tokenizer; the logits may have more.
    """

    control_strings: frozenset[str] = frozenset()

    def __init__(self, files: ModelFiles, tokenizer: Any, forward: HookedForward):
        self._files = files
        self.tokenizer = tokenizer
        self._forward = forward
        weights = next(forward.plain.parameters())
        config = forward.bridge.cfg
        heads = ("n_heads", "n_key_value_heads", "d_head")
        n_heads, key_heads, d_head = (int(getattr(config, name, 0) or 0) for name in heads)
        self.name: str = files.name
        self.n_layers: int = int(config.n_layers)
        self.d_model: int = int(config.d_model)
        self.n_heads: int = n_heads
        self.n_key_value_heads: int = key_heads or n_heads
        self.d_head: int = d_head
        self.is_encoder: bool = is_encoder(files.folder)
        self.d_vocab: int = int(forward.plain.get_output_embeddings().weight.shape[0])
        self.max_context: int = int(config.n_ctx)
        self.dtype: torch.dtype = weights.dtype
        self.device: torch.device = weights.device
        start = tokenizer.cls_token_id if self.is_encoder else None
        self.bos_id: int | None = tokenizer.bos_token_id if start is None else start
        # The pretraining one if the vocabulary has it, else EOS.
        self.separator_id: int | None = tokenizer.get_vocab().get(
            DOCUMENT_SEPARATOR, tokenizer.eos_token_id
        )
        added = (id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special)
        self.special_ids: frozenset[int] = frozenset([*tokenizer.all_special_ids, *added])
        ends = {tokenizer.eos_token_id, self.separator_id} - {None}
        self.end_ids: frozenset[int] = frozenset(ends)
        spelt = tokenizer.convert_ids_to_tokens(sorted(self.special_ids))
        self.control_strings = frozenset(map(str, spelt)) - {""}
        self.tokenizer_size: int = len(tokenizer)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over config, weight and tokenizer files: the same model, the same hash."""
        return self._files.content_hash()

    @cached_property
    def _loss_gradients(self) -> LossGradients:
        return LossGradients(self._forward)

    def hook_points(self) -> list[str]:
        """Every hook point that gives one vector per token."""
        return self._forward.names()

    def width_at(self, hook_point: str) -> int:
        """Entries per token at a hook point; heads count flattened.

        Raises:
            ModelError: there is no such hook point; the message names the nearest.
        """
        return self._forward.width_at(hook_point)

    def rows_read(self, hook_point: str) -> Float[Tensor, "width d_model"] | None:
        """What the linear layer that reads a hook point writes for each entry; None: none does."""
        return self._forward.rows_read(hook_point)

    def tokenize(self, texts: Sequence[str], *, control_tokens: bool = False) -> list[list[int]]:
        """Token ids of each text, with no special token added.

        Text that spells a special token ("<|endoftext|>") stays ordinary text, unless
        `control_tokens` is set: a document must not be able to end itself.
        """
        if not texts:
            return []
        off = dict.fromkeys(("add_special_tokens", "return_attention_mask", "verbose"), False)
        try:
            with panics_as_errors():
                encoded = self.tokenizer(
                    list(texts), split_special_tokens=not control_tokens, **off
                )
        except RuntimeError as error:
            raise ModelError(
                f"the tokenizer of {self.name} fails on this text ({first_line(error)}): its "
                "tokenizer.json is damaged, or tokenizers has a fault"
            ) from error
        return [list(ids) for ids in encoded["input_ids"]]

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Each token as text; bytes that are no whole character show as "�"."""
        pieces = self.tokenizer.convert_ids_to_tokens(list(ids))
        strings = [self.tokenizer.decode([id_], clean_up_tokenization_spaces=False) for id_ in ids]
        # Sentencepiece tokenizers drop the leading space of a lone token.
        return [
            " " + string if str(piece).startswith("▁") and not string.startswith(" ") else string
            for piece, string in zip(pieces, strings, strict=True)
        ]

    def token_bytes(self) -> list[bytes]:
        """The bytes of every token of the vocabulary, by id."""
        return token_bytes(self.tokenizer, self.d_vocab)

    def logit_lens(self) -> Lens:
        """The way from the residual stream to the logits, on the CPU in float32."""
        self.require_next_token("logit lenses")
        return lens_of(self._forward.plain, self._forward.final_norm())

    def text_of(self, ids: Sequence[int]) -> str:
        """Tokens as one text; bytes that are no whole character show as "�"."""
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)

    @torch.no_grad()
    def capture(
        self,
        tokens: Int[Tensor, "batch seq"],
        hook_points: Sequence[str],
        after: Int[Tensor, " before"] | None = None,
    ) -> dict[str, Float[Tensor, "batch seq _"]]:
        """Activations at hook points, from one pass that stops at the last one asked for.

        Returns:
            Hook point -> [batch seq d_in] in the model's dtype on its device; without the tokens
            `after` which every row stands, which are computed once for all.

        Raises:
            ModelError: unknown hook point, too long a context, or a token outside the vocabulary.
        """
        if after is None:
            return self._forward.capture(self._checked(tokens), hook_points)
        whole = torch.cat([after.to(tokens).expand(len(tokens), -1), tokens], dim=1)
        return capture_after(self._forward, self._checked(whole), len(after), hook_points)

    def capture_with_gradients(
        self, tokens: Int[Tensor, "batch seq"], hook_points: Sequence[str]
    ) -> dict[str, tuple[Float[Tensor, "batch seq _"], Float[Tensor, "batch seq _"]]]:
        """Activations and the gradient of the summed next-token loss with respect to them.

        The gradient is the total derivative: what the loss, summed over all positions of each
        context (nats, float32), changes by when the activation does, later hook points of the
        same call following. Contexts do not influence each other; they are taken a few at a time.

        Returns:
            Hook point -> (activations, gradients), each [batch seq d_in] in the model's dtype.

        Raises:
            ModelError: as for `capture`.
        """
        self.require_next_token("gradients of the loss")
        return self._loss_gradients.at(self._checked(tokens), hook_points)

    def run(
        self,
        tokens: Int[Tensor, "batch seq"],
        splice: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
        *,
        capture: Sequence[str] = (),
        into: dict[str, Tensor] | None = None,
        gradients: bool = False,
    ) -> ModelOutput:
        """A full forward pass, optionally with activations replaced or kept on the way.

        Args:
            splice: hook point -> function from the activation [batch seq d_in] (model dtype) to
                its replacement of the same shape (any dtype).
            capture: hook points whose activations are given back; none that is spliced.
            into: what they are put into as the pass comes to them, for a splice that comes later.
                None: a dictionary of their own.
            gradients: keep the autograd graph from what the splice returns to losses and logits.

        Raises:
            ModelError: as for `capture`; or a hook point whose replacement would not reach all
                that reads it; or a replacement of another shape.
        """
        self.require_next_token("losses")
        tokens = self._checked(tokens)
        visits: dict[str, Visit] = {}
        for name, change in (splice or {}).items():
            self.require_spliceable(name)
            visits[name] = partial(_replaced, name, change)
        kept: dict[str, Tensor] = {} if into is None else into
        visits |= keeping(kept, capture)
        with torch.set_grad_enabled(gradients):
            logits = self._forward.run(tokens, visits)
            assert logits is not None
            return ModelOutput(logits, next_token_loss(logits, tokens), kept)

    @torch.no_grad()
    def last_logits(
        self,
        context: Int[Tensor, " seq"],
        hook_point: str,
        additions: Float[Tensor, "variants d_in"],
    ) -> Float[Tensor, "variants d_vocab"]:
        """Logits at the last position of one context, once with each addition at that position.

        The context before its last token is computed once for all, where the model allows it.

        Args:
            additions: what is added to the activation there, one row per variant.

        Raises:
            ModelError: as for `run`; or additions of another width than the hook point's.
        """
        self.require_next_token("next-token logits")
        tokens = self._checked(context[None])
        self.require_spliceable(hook_point)
        if additions.shape[1] != (width := self.width_at(hook_point)):
            raise ModelError(
                f"additions of width {additions.shape[1]} do not fit {hook_point!r}, whose "
                f"activations have width {width}"
            )

        def add(x: Tensor) -> Tensor:
            return (x.float() + additions.to(x.device)[:, None]).to(x.dtype)

        return run_last_position(self._forward, tokens, hook_point, add, len(additions))

    def next_token_gradients(
        self,
        tokens: Int[Tensor, " seq"],
        hook_point: str,
        target: int,
        quantity: Quantity = "logit",
    ) -> tuple[Float[Tensor, "seq d_in"], Float[Tensor, "seq d_in"], float]:
        """Activations, the gradient of a next token's logit with respect to them, and its value.

        Args:
            target: id of the token whose logit after the context is differentiated.
            quantity: "logit", or "log_probability" (nats).

        Raises:
            ModelError: as for `capture`; or a target outside the vocabulary.
        """
        self.require_next_token("gradients of a next token")
        if not 0 <= target < self.d_vocab:
            raise ModelError(
                f"token id {target} does not fit {self.name}, whose vocabulary has {self.d_vocab}"
            )
        context = self._checked(tokens[None])[0]
        return next_token_gradients(self._forward, context, hook_point, target, quantity)

    def generate(
        self,
        prompt: Int[Tensor, " seq"],
        hook_point: str,
        edit: Edit,
        *,
        n_versions: int,
        n_tokens: int,
        temperature: float | int = 1.0,
        seed: int = 0,
    ) -> Iterator[GeneratedTokens]:
        """Write on from a prompt with activations edited, versions side by side.

        Args:
            prompt: token ids on any device, at least one.
            edit: from activations [versions seq d_in], tokens [versions seq] and the position of
                the first of them, to the activations' replacement; sees every position once.
            n_versions: rows written side by side, with the same random numbers.
            n_tokens: most tokens to write; all versions may end earlier.
            temperature: that logits are divided by; 0 takes the likeliest token.

        Raises:
            ModelError: as for `run`; or no prompt, or more tokens than the model's context holds.
        """
        self.require_next_token("texts written on")
        if not len(prompt) or n_tokens < 1:
            raise ModelError(
                f"generation needs a prompt and a number of tokens; got {len(prompt)} tokens of "
                f"prompt and {n_tokens} to write"
            )
        if len(prompt) + n_tokens > self.max_context:
            raise ModelError(
                f"{len(prompt)} tokens of prompt and {n_tokens} to write are more than "
                f"{self.name} allows: at most {self.max_context}"
            )
        tokens = self._checked(prompt[None])[0]
        self.require_spliceable(hook_point)
        return generate_tokens(
            self._forward,
            tokens,
            hook_point,
            edit,
            n_versions=n_versions,
            n_tokens=n_tokens,
            temperature=temperature,
            seed=seed,
            end_ids=self.end_ids,
        )

    @torch.no_grad()
    def prepare_patches(
        self,
        tokens: Int[Tensor, "batch seq"],
        end: Int[Tensor, " batch"],
        hook_points: Sequence[str],
        first_position: int = 0,
    ) -> PatchedRuns:
        """Right-padded prompts made ready to be run many times with activations replaced.

        What no replacement can change is computed once: all before `first_position`, and
        the blocks below the first hook point. Queries and keys (`attn.hook_q`, `attn.hook_k`) are
        those before any rotation by position, so that a value means the same at every position.

        Args:
            tokens: [batch seq] on any device; padding comes last and may be any token.
            end: the position of each prompt whose logits are asked for.
            hook_points: every hook point that will be patched.
            first_position: no replacement changes anything before it.

        Raises:
            ModelError: as for `run`.
        """
        self.require_next_token("patched runs")
        tokens = self._checked(tokens)
        for name in hook_points:
            self.require_spliceable(name)
        return PatchedRuns(
            self._forward, tokens, end.to(tokens.device), hook_points, first_position
        )

    def require_spliceable(self, hook_point: str) -> None:
        """Refuse a hook point whose replacement would not reach all that reads it.

        Raises:
            ModelError: there it is, or there is no such hook point.
        """
        self.width_at(hook_point)
        if hook_point.endswith("hook_resid_mid") and self._forward.is_input(hook_point):
            raise ModelError(
                f"cannot splice at {hook_point!r}: the replacement would reach the MLP but not the "
                "residual stream; splice at hook_resid_pre, hook_attn_out or hook_resid_post"
            )

    def require_next_token(self, what: str) -> None:
        """Refuse what an encoder cannot do.

        Args:
            what: needs the prediction of the next token, as a sentence begins with it.

        Raises:
            ModelError: the model is an encoder.
        """
        if self.is_encoder:
            raise ModelError(
                f"{what} need a model that predicts the next token, and {self.name} is an encoder, "
                "whose tokens see those after them: it can be cached (`saelab cache`) and trained "
                "on, and its features be read; give a causal model for the rest"
            )

    def _checked(self, tokens: Tensor) -> Tensor:
        """Tokens on the model's device, if it can read them."""
        if tokens.shape[1] > self.max_context:
            raise ModelError(
                f"a context of {tokens.shape[1]} tokens is longer than {self.name} allows: "
                f"at most {self.max_context}"
            )
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.d_vocab:
            raise ModelError(
                f"token ids from {int(tokens.min())} to {int(tokens.max())} do not fit "
                f"{self.name}, whose vocabulary has {self.d_vocab}: tokenise with this model"
            )
        return tokens.to(self.device, torch.int64)


def _replaced(name: str, change: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    new = change(x)
    if new.shape != x.shape:
        raise ModelError(
            f"the splice at {name!r} returned shape {tuple(new.shape)} for an activation of "
            f"shape {tuple(x.shape)}: return the same shape"
        )
    return new.to(dtype=x.dtype, device=x.device)
