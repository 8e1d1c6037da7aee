"""Finetuning saved dictionaries by what replacing activations with their reconstructions costs.

All dictionaries are spliced into one pass of the model, each from what it reads in that pass, a
cross-layer transcoder source by source. A crosscoder reads the untouched model, and each hook point
that it writes is replaced in a pass of its own: in one pass the last would hide those before it.
The loss is KL(original || spliced) or the spliced model's cross-entropy, its mean over the passes,
plus a weight times the mean FVU of what the dictionaries write against what the untouched model has
there. Selection stays as it is: k, groups and thresholds are those of the saved dictionary, and no
gradient flows through which latents are active. Decoder rows, over all hook points, keep their
norms.

A tensor's learning rate is relative to its root mean square at the start, since saved dictionaries
are in the units of their activations. A `gated` dictionary becomes the `jumprelu` one that is the
same function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from saelab.dictionary import Dictionary, SavedDictionary
from saelab.dictionary.architectures import error_of
from saelab.dictionary.data_spec import DataSpec
from saelab.dictionary.layered import LayeredDictionary
from saelab.dictionary.live_splice import LiveSplice, is_crosscoder, parts_of, sources_of
from saelab.dictionary.site import Site
from saelab.dictionary.site_rows import SiteRows, site_rows, splice_at
from saelab.errors import ActivationError
from saelab.model.language_model import LanguageModel, ModelOutput
from saelab.sparse import SparseCodes, TransposedPairs, decode_selected, encode_selected
from saelab.text.contexts import TextBatch, describe_text, text_batches

from .config import OptimizerConfig
from .learner import moments_of, restore_moments
from .schedule import Schedule

SplicedLoss = Literal["kl", "cross_entropy"]
FIXED = ("threshold", "b_in")
"""Tensors that are not trained: thresholds, and an input bias that b_enc makes up for."""


@dataclass(frozen=True)
class SplicedFigures:
    """What one batch says of the spliced model."""

    loss: Float[Tensor, ""]
    """The sum that is minimised."""
    kl: Float[Tensor, ""]
    """Mean KL(original || spliced) of the predicted positions, nats."""
    cross_entropy: Float[Tensor, ""]
    """Mean next-token loss of the spliced model, nats."""
    clean: float
    """That of the untouched model, nats."""
    fvu: tuple[Float[Tensor, ""], ...]
    """Of what each dictionary writes, against what the untouched model has there."""
    l0: tuple[float, ...]
    """Mean number of active latents of each."""


class FinetunedDictionary:
    """A saved dictionary whose tensors are being trained.

    Attributes:
        saved: what it began as.
        spec: the rows it replaces.
        dictionary: as it is now.
        tensors: those that are trained, by name.
    """

    def __init__(self, saved: SavedDictionary, spec: DataSpec, device: torch.device):
        self.saved, self.spec = saved, spec
        self.dictionary = with_one_encoder(saved.dictionary, spec.site, device)
        sources = [opened() for opened, _ in sources_of(self.dictionary, spec.site)]
        of_each = [
            (f"layer_{index}." if sources[1:] else "", index, each.tensors().items())
            for index, each in enumerate(sources)
        ]
        self.tensors = {
            prefix + name: tensor.requires_grad_()
            for prefix, index, named in of_each
            for name, tensor in named
            if name not in FIXED and not (index and name == "b_dec")  # the first one's is of all
        }
        self._decoders = [each.W_dec for each in sources]
        self._norms = [each.detach().norm(dim=1, keepdim=True) for each in self._decoders]

    @torch.no_grad()
    def after_update(self) -> None:
        """Bring the decoder's rows back to the norms that they began with."""
        for W_dec, norms in zip(self._decoders, self._norms, strict=True):
            W_dec.mul_(norms / W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))


@torch.no_grad()
def with_one_encoder(
    dictionary: Dictionary, site: Site, device: torch.device | str = "cpu"
) -> Dictionary:
    """The same function with a gate that is a threshold on its codes; a copy.

    A gated latent fires where its magnitude exceeds b_mag − exp(r_mag) · b_gate. A cross-layer
    transcoder becomes one of layers, which are all held.

    Raises:
        ConfigError: a dictionary over several layers that does not come apart.
    """
    sources = sources_of(dictionary, site)
    if len(sources) > 1:
        layers = [_with_one_encoder(opened(), device) for opened, _ in sources]
        whole = LayeredDictionary(layers.__getitem__, [each.d_sae for each in layers])
        if isinstance(dictionary, LayeredDictionary):
            whole.k = dictionary.k
        return whole
    dictionary.require_whole()
    return _with_one_encoder(dictionary, device)


def _with_one_encoder(dictionary: Dictionary, device: torch.device | str) -> Dictionary:
    tensors = {name: t.clone().to(device) for name, t in dictionary.tensors().items()}
    architecture = dictionary.architecture
    if architecture == "gated":
        scale, b_gate = tensors.pop("r_mag").exp(), tensors.pop("b_gate")
        tensors |= {"W_enc": tensors["W_enc"] * scale, "b_enc": tensors.pop("b_mag")}
        tensors["threshold"] = tensors["b_enc"] - scale * b_gate
        architecture = "jumprelu"
    return Dictionary(
        architecture,
        k=dictionary.k or None,
        input_normalisation=dictionary.input_normalisation,
        **tensors,
    )


def reconstruct(
    dictionary: Dictionary, x: Float[Tensor, "rows d_in"]
) -> tuple[SparseCodes, Float[Tensor, "rows d_out"]]:
    """Codes, and a reconstruction that is differentiable in the dictionary and its rows.

    No gradient flows through which latents are active.
    """
    x, d = x.to(dictionary.b_dec), dictionary
    with torch.no_grad():
        selected = d.encode(x)
    pairs = TransposedPairs.of(selected)
    inputs, scale = d.encoder_inputs(x), d.row_scale(x)
    zero = inputs.new_zeros(d.d_in)  # the input bias is taken off already
    value = encode_selected(inputs, d.W_enc, d.b_enc, zero, selected, pairs)
    combined = decode_selected(selected, value, d.W_dec, pairs)
    return selected, d.baseline(x) + (combined if scale is None else combined * scale[:, None])


def spliced_figures(
    model: LanguageModel,
    dictionaries: Sequence[tuple[Dictionary, DataSpec]],
    batch: TextBatch,
    *,
    loss: SplicedLoss,
    reconstruction_weight: float,
    first_context: int = 0,
    gradients: bool = True,
) -> SplicedFigures:
    """Run the model untouched and with every dictionary spliced in.

    Args:
        dictionaries: each with the rows that it replaces; all of one model and text.
        batch: the contexts.
        loss: what is minimised beside the FVU.
        reconstruction_weight: of the mean FVU.
        first_context: index of the first context in the text, for messages.
        gradients: keep the graph.

    Raises:
        ActivationError: activations that are not finite, or a loss that is not.
        ConfigError: dictionaries that cannot be spliced together.
    """
    names = dict.fromkeys(name for _, spec in dictionaries for name in spec.site.hook_points)
    clean = model.run(batch.tokens, capture=tuple(names))
    rows = [
        site_rows(model, spec, batch, clean.activations, first_context) for _, spec in dictionaries
    ]
    spliced = Spliced(model, dictionaries, rows, batch.tokens, gradients)
    with torch.set_grad_enabled(gradients):
        losses, kl = _loss_and_kl(clean, spliced.outputs, batch)
        of_each = [
            _fvu_of(each.targets, written)
            for each, written in zip(rows, spliced.written, strict=True)
        ]
        total = kl if loss == "kl" else losses
        total = total + reconstruction_weight * torch.stack(of_each).mean()
    if not bool(total.isfinite()):
        raise ActivationError(
            f"the loss is {float(total.detach())}: the last checkpoint is untouched; start over "
            "with a lower --optimizer.learning-rate"
        )
    clean_loss = float(batch.of_text(clean.loss).mean())
    return SplicedFigures(total, kl, losses, clean_loss, tuple(of_each), tuple(spliced.l0))


class Spliced:
    """The passes of the model with dictionaries spliced in.

    Attributes:
        outputs: of each pass: one, or one for each hook point that a crosscoder writes.
        written: what each dictionary writes, hook points side by side.
        l0: mean number of active latents of each, over its sources together.
    """

    def __init__(
        self,
        model: LanguageModel,
        dictionaries: Sequence[tuple[Dictionary, DataSpec]],
        rows: Sequence[SiteRows],
        tokens: Tensor,
        gradients: bool,
    ):
        self.l0 = [0.0] * len(dictionaries)
        sites = [spec.site for _, spec in dictionaries]
        replaces = [self._counting(index) for index in range(len(sites))]
        with torch.set_grad_enabled(gradients):
            if is_crosscoder(sites[0]):
                [(dictionary, _)], [site] = dictionaries, sites
                self.written = [replaces[0](dictionary, rows[0].inputs)]
                splices = splice_at(model, site, rows[0].keep, self.written[0])
                self.outputs = [
                    model.run(tokens, {name: change}, gradients=gradients)
                    for name, change in splices.items()
                ]
                return
        parts = [
            part
            for index, (dictionary, _) in enumerate(dictionaries)
            for part in parts_of(index, dictionary, sites[index], rows[index], replaces[index])
        ]
        splice = LiveSplice(model, parts)
        self.outputs = [splice.run(tokens, gradients=gradients)]
        of_sites = [[splice.written[name] for name in site.writes] for site in sites]
        self.written = [torch.cat(each, dim=1) for each in of_sites]

    def _counting(self, index: int) -> Callable[[Dictionary, Tensor], Tensor]:
        def replace(dictionary: Dictionary, x: Tensor) -> Tensor:
            codes, written = reconstruct(dictionary, x)
            self.l0[index] += float(codes.l0().double().mean())
            return written

        return replace


def _fvu_of(targets: Tensor, written: Tensor) -> Float[Tensor, ""]:
    targets = targets.to(written)
    variance = (targets - targets.mean(0)).square().sum()
    return error_of(targets, written).square().sum() / variance


def _loss_and_kl(
    clean: ModelOutput, outputs: Sequence[ModelOutput], batch: TextBatch
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Cross-entropy and KL(clean || spliced), means over positions and passes, nats."""

    def logits_of(output: ModelOutput) -> Tensor:
        of_text = batch.of_text(output.logits[:, :-1]).flatten(0, -2)
        wide = of_text.to(torch.promote_types(of_text.dtype, torch.float32))
        return wide.log_softmax(-1)

    expected = logits_of(clean)
    kls = [
        functional.kl_div(logits_of(each), expected, reduction="sum", log_target=True)
        for each in outputs
    ]
    losses = [batch.of_text(each.loss).mean() for each in outputs]
    return torch.stack(losses).mean(), torch.stack(kls).mean() / len(expected)


class Finetuner:
    """Dictionaries with the optimizer that trains them together."""

    def __init__(
        self, tuned: Sequence[FinetunedDictionary], config: OptimizerConfig, schedule: Schedule
    ):
        self.tuned, self.config, self.schedule = tuned, config, schedule
        self.named = {
            f"{each.saved.folder.name}/{name}": tensor
            for each in tuned
            for name, tensor in each.tensors.items()
        }
        self.scales = [float(t.detach().square().mean().sqrt()) for t in self.named.values()]
        groups = [{"params": [tensor]} for tensor in self.named.values()]
        betas = (config.beta1, config.beta2)
        self.optimizer = torch.optim.Adam(groups, lr=config.learning_rate, betas=betas)

    def step(self, loss: Float[Tensor, ""], step: int) -> None:
        """Take one step; `step` counts those taken before."""
        rate = self.config.learning_rate * self.schedule.rate_factor(step, self.config)
        for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"] = rate * scale
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.named.values(), self.config.clip_norm)
        self.optimizer.step()
        for each in self.tuned:
            each.after_update()

    def state(self) -> dict[str, Tensor]:
        """Everything that `restore` needs, as named tensors."""
        held = {f"tensor.{name}": tensor.detach() for name, tensor in self.named.items()}
        return held | moments_of(self.named, self.optimizer)

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on exactly where `state` was taken."""
        for name, tensor in self.named.items():
            tensor.copy_(state[f"tensor.{name}"])
        restore_moments(self.named, self.optimizer, state)


class ContextStream:
    """Endless batches of a text's training contexts, in their order; saved and restored exactly."""

    def __init__(self, model: LanguageModel, spec: DataSpec, batch_contexts: int):
        self._model, self._spec, self.batch_contexts = model, spec, batch_contexts
        self.next_context = 0
        self._batches: Iterator[TextBatch] | None = None

    def next_batch(self) -> tuple[TextBatch, int]:
        """Some contexts, and the index of the first in the text."""
        if self._batches is None:
            self._batches = text_batches(
                self._spec.text,
                self._model,
                split="train",
                context_length=self._spec.context_length,
                batch_contexts=self.batch_contexts,
                skip_contexts=self.next_context,
            )
        batch = next(self._batches, None)
        if batch is None:
            self.next_context, self._batches = 0, None
            return self.next_batch()
        first, self.next_context = self.next_context, self.next_context + len(batch)
        return batch, first

    def state(self) -> dict[str, Tensor | int | str]:
        """All that `restore` needs."""
        text = describe_text(self._spec.text)["content_hash"]
        return {"stream": "contexts", "text_hash": text or "", "next_context": self.next_context}

    def restore(self, state: Mapping[str, Tensor | int | str]) -> None:
        """Go on where `state` was taken.

        Raises:
            ActivationError: the text was changed.
        """
        if state["text_hash"] != self.state()["text_hash"]:
            raise ActivationError(
                f"{self._spec.text.source} was changed since the run began: restore it, or start "
                "over with --overwrite"
            )
        self.next_context, self._batches = int(state["next_context"]), None
