"""One forward pass with functions at hook points, by the cheaper of two routes.

The TransformerLens bridge knows every hook point but runs a slower attention and hundreds of hooks.
A plain copy of the Hugging Face model, sharing the weights, has the same tensors at the inputs and
outputs of its modules and runs as fast as the library does. A hook point is served by the plain
route once a short probe has shown that both give the same tensor there; else by the bridge. This
is the only module that imports transformer_lens, and it does so when a model is loaded.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from saelab.errors import ModelError, did_you_mean, first_line

from .hugging_face import quiet_transformers

logger = logging.getLogger(__name__)

Visit = Callable[[Tensor], Tensor | None]
"""Sees an activation [batch seq d_in]; returns its replacement of the same shape, or None."""

PROBE_AGREEMENT = 0.05
"""Largest median relative error per row between the routes; bfloat16 noise is about 0.01."""


def keeping(captured: dict[str, Tensor], names: Sequence[str]) -> dict[str, Visit]:
    """Visits that put a copy of each activation into `captured`."""

    def keep(name: str, x: Tensor) -> None:
        # A copy, because some architectures add to a tensor in place later on.
        captured[name] = x.clone()

    return {name: partial(keep, name) for name in names}


class _EverythingSeen(Exception):
    """Raised inside the forward pass to stop it: the last hook point asked for has fired."""


@dataclass(frozen=True)
class ModuleSide:
    """The input or the output of a module of the plain model."""

    module: nn.Module
    is_input: bool


class HookedForward:
    """A language model's forward pass with access to its hook points.

    Args:
        bridge: a TransformerBridge.
        plain: the same Hugging Face model without the bridge, sharing its weights.
        twins: id of each original module inside the bridge -> the plain model's module.

    Attributes:
        probe_tokens: a few short contexts that routes are compared on.
        starts: block -> whether a pass can start with it, as far as it was tried.
    """

    def __init__(self, bridge: Any, plain: nn.Module, twins: Mapping[int, nn.Module]):
        self.bridge = bridge
        self.plain: Any = plain
        self._twins = twins
        self._sites: dict[str, ModuleSide | None] = {}
        self._widths: dict[str, int | None] = {}
        self.starts: dict[int, bool] = {}
        config = bridge.cfg
        device = next(plain.parameters()).device
        self._points = {
            name: point
            for name, point in bridge.hook_dict.items()
            if _fires(bridge, name, point) and _is_what_it_says(bridge, name, point)
        }
        # Two axes of the probe must not be mistaken for heads: 3 rows, and a length no head
        # count equals.
        heads = {getattr(config, "n_heads", 0), getattr(config, "n_key_value_heads", 0)}
        length = next(n for n in range(5, 9) if n not in heads)
        entries = self.plain.get_input_embeddings().weight.shape[0]
        ids = torch.arange(3 * length, device=device) * 7 % entries
        self.probe_tokens = rearrange(ids, "(context position) -> context position", context=3)

    def names(self) -> list[str]:
        """Every hook point with one row per token, in the order of the forward pass's modules."""
        if self._widths.keys() != self._points.keys():
            probed = self._probe(list(self._points))
            self._widths = {name: self._width_of(probed.get(name)) for name in self._points}
        return [name for name in self._points if self._widths[name] is not None]

    def width_at(self, name: str) -> int:
        """Entries per token at a hook point (heads flattened).

        Raises:
            ModelError: no such hook point, or one that has no row per token.
        """
        known = self._points
        given = self.bridge.hook_dict.get(name)
        if given is not None and not _is_what_it_says(self.bridge, name, given):
            raise ModelError(
                f"the model has no hook point {name!r}: there is no such tensor in its blocks, and "
                f"what transformer_lens gives under that name is {given.name!r}: name that"
            )
        if name not in known:
            raise ModelError(
                f"the model has no hook point {name!r}: {did_you_mean(name, known)} "
                f"(blocks are 0 to {self.bridge.cfg.n_layers - 1})"
            )
        if name not in self._widths:
            self._widths[name] = self._width_of(self._probe([name]).get(name))
        width = self._widths[name]
        if width is None:
            raise ModelError(
                f"hook point {name!r} does not give one vector per token in this model: "
                f"choose one such as 'blocks.{self.bridge.cfg.n_layers // 2}.hook_resid_post'"
            )
        return width

    def is_input(self, name: str) -> bool:
        """Whether the hook point is what a module reads, not what it writes.

        Others may read the same tensor (the residual stream goes round the layer norm), so a
        replacement there changes this module's view of it only.
        """
        return str(self._points[name].name).endswith(".hook_in")

    def is_plain(self, name: str) -> bool:
        """Whether the hook point is served by the plain model, the cheaper route."""
        return self._site(name) is not None

    def run(
        self,
        tokens: Int[Tensor, "batch seq"],
        visits: Mapping[str, Visit],
        *,
        stop_when_seen: bool = False,
        graph_for: Sequence[str] = (),
        stop_at_head: bool = False,
        past: Any = None,
    ) -> Float[Tensor, "batch positions d_vocab"] | None:
        """Run the model, calling each visit with its hook point's activation.

        Args:
            visits: hook point -> function; heads arrive flattened.
            stop_when_seen: stop as soon as every hook point has fired; returns None.
            graph_for: hook points whose visits will be differentiated with respect to; what is
                a module's input gets a graph that begins with its block.
            stop_at_head: return what the head reads instead of the logits; for hook points that
                are plain and come before it (`ends_before_head`).
            past: a transformers cache of the tokens before these, which grows by these; for hook
                points that are plain only.

        Returns:
            The logits in the model's dtype, of every position unless a hook on the head lets it
            read fewer, or None where the pass was stopped by `stop_when_seen`.
        """
        for name in visits:
            self.width_at(name)
        sites = {name: self._site(name) for name in visits}
        plain = all(site is not None for site in sites.values())
        if past is not None and not plain:
            raise ModelError(f"hook points {list(visits)} cannot be run from a cache of keys")
        seen: set[str] = set()

        def wrap(name: str, visit: Visit) -> Visit:
            def visited(x: Tensor) -> Tensor | None:
                replacement = visit(rearrange(x, "batch seq ... -> batch seq (...)"))
                seen.add(name)
                if stop_when_seen and len(seen) == len(visits):
                    raise _EverythingSeen
                return None if replacement is None else replacement.reshape(x.shape)

            return visited

        wrapped = {name: wrap(name, visit) for name, visit in visits.items()}
        with ExitStack() as stack:
            if any(self.is_input(name) for name in graph_for):
                stack.enter_context(self._graph_started(self.first_block(graph_for), plain))
            try:
                if plain:
                    pairs = [(sites[name], visit) for name, visit in wrapped.items()]
                    if stop_at_head:
                        head = ModuleSide(self.plain.get_output_embeddings(), is_input=True)
                        return self._read_until(tokens, head, pairs)
                    return self._run_plain(tokens, pairs, past)
                return self._run_bridge(tokens, wrapped)
            except _EverythingSeen:
                return None

    def capture(
        self, tokens: Int[Tensor, "batch seq"], names: Sequence[str], past: Any = None
    ) -> dict[str, Float[Tensor, "batch seq _"]]:
        """Activations at hook points, from one pass that stops at the last of them."""
        captured: dict[str, Tensor] = {}
        if names:
            self.run(tokens, keeping(captured, names), stop_when_seen=True, past=past)
        return {name: captured[name] for name in names}

    @torch.no_grad()
    def rows_read(self, name: str) -> Float[Tensor, "width d_model"] | None:
        """What a linear module writes for a one in each entry of its input, a hook point; None
        where the hook point is not the input of one."""
        site = self._site(name)
        if site is None or not site.is_input:
            return None
        weights = next(site.module.parameters())
        units = torch.eye(self.width_at(name), dtype=weights.dtype, device=weights.device)[None]
        return (site.module(units) - site.module(torch.zeros_like(units[:, :1])))[0]

    def first_block(self, names: Iterable[str]) -> int | None:
        """The block that all hook points are in or after; None for the embeddings."""
        blocks = [self._block(name) for name in names]
        return None if None in blocks else min(block for block in blocks if block is not None)

    def block_module(self, index: int) -> nn.Module | None:
        """The plain model's block of that number; None where the plain model has no such module."""
        original = getattr(self.bridge.blocks[index], "original_component", None)
        return self._twins.get(id(original))

    @cached_property
    @torch.no_grad()
    def blocks_return_tuples(self) -> bool:
        """Whether the plain model's blocks give a tuple with the residual stream first."""
        given: list[Any] = []
        block = self.block_module(0)
        assert block is not None
        handle = block.register_forward_hook(lambda module, args, output: given.append(output))  # noqa: ARG005
        try:
            self._run_plain(self.probe_tokens, [])
        finally:
            handle.remove()
        return isinstance(given[0], tuple | list)

    def final_norm(self) -> nn.Module | None:
        """The plain model's last norm; None where it has none."""
        norm = getattr(self.bridge, "ln_final", None)
        return None if norm is None else self._twins.get(id(norm.original_component))

    def _block(self, name: str) -> int | None:
        match name.split("."):
            case ["blocks", number, *_]:
                return int(number)
            case ["ln_final" | "unembed", *_]:
                return int(self.bridge.cfg.n_layers) - 1
        return None

    def _graph_started(self, block: int | None, plain: bool) -> AbstractContextManager[None]:
        """Let the autograd graph begin with the input of a block, or with the embeddings."""
        module: Any = None if block is None else self.bridge.blocks[block]
        if plain and module is not None:
            module = self._twins.get(id(module.original_component))
        if module is not None:
            return attached(ModuleSide(module, is_input=True), _leaf)
        model = self.plain if plain else self.bridge.original_model
        return attached(ModuleSide(model.get_input_embeddings(), is_input=False), _leaf)

    def ends_before_head(self, names: Iterable[str]) -> bool:
        """Whether a pass that is stopped at the head, on the plain route, meets all hook points."""
        head = self.plain.get_output_embeddings()
        sites = [self._site(name) for name in names]
        return all(
            site is not None and (site.is_input or site.module is not head) for site in sites
        )

    def _read_until(
        self,
        tokens: Tensor,
        site: ModuleSide,
        visits: Iterable[tuple[ModuleSide | None, Visit]] = (),
    ) -> Tensor | None:
        """The plain model's activation at a site, where the pass is stopped."""
        read: list[Tensor] = []

        def stop(x: Tensor) -> None:
            read.append(x)
            raise _EverythingSeen

        with suppress(_EverythingSeen):
            self._run_plain(tokens, [*visits, (site, stop)])
        return read[0] if read else None

    @torch.no_grad()
    def linear_head(self) -> nn.Linear | None:
        """The plain model's head, if it is a linear layer and its output is the logits.

        A probe replaces its output by other numbers: a cap, a scale or a cut would show.
        """
        head = self.plain.get_output_embeddings()
        if type(head) is not nn.Linear:
            return None
        read, written, put = [], [], []

        def replace(x: Tensor) -> Tensor:
            written.append(x)
            put.append(torch.linspace(-300, 300, x.numel()).to(x).reshape(x.shape))
            return put[-1]

        sites = [
            (ModuleSide(head, is_input=True), read.append),
            (ModuleSide(head, is_input=False), replace),
        ]
        logits = self._run_plain(self.probe_tokens, sites)
        if len(read) != 1 or read[0].shape[:2] != self.probe_tokens.shape or read[0].dim() != 3:
            return None
        linear = functional.linear(read[0], head.weight, head.bias)
        return head if torch.equal(linear, written[0]) and torch.equal(logits, put[0]) else None

    def _run_plain(
        self, tokens: Tensor, visits: Iterable[tuple[ModuleSide | None, Visit]], past: Any = None
    ) -> Tensor:
        """The plain model with forward hooks on its modules."""
        with ExitStack() as stack:
            for site, visit in visits:
                assert site is not None
                stack.enter_context(attached(site, visit))
            cache = {"use_cache": False} if past is None else {"past_key_values": past}
            return self.plain(input_ids=tokens, **cache).logits

    def _run_bridge(self, tokens: Tensor, visits: Mapping[str, Visit]) -> Tensor:
        """The bridge, with TransformerLens hooks."""
        hooks = [
            (self._points[name].name, lambda x, hook, visit=visit: visit(x))  # noqa: ARG005
            for name, visit in visits.items()
        ]
        with self.bridge.hooks(fwd_hooks=hooks), warnings.catch_warnings():
            # Replacing what is inside a norm makes the bridge rebuild its output: as asked.
            warnings.filterwarnings("ignore", message="A forward hook edited hook_scale")
            return self.bridge(tokens, return_type="logits")

    def _site(self, name: str) -> ModuleSide | None:
        """The plain model's site of a hook point, if a probe shows that it is the same."""
        if name not in self._sites:
            site = self._candidate(name)
            if site is not None and not self._agrees(name, site):
                logger.info("hook point %s is served by the bridge (slower)", name)
                site = None
            self._sites[name] = site
        return self._sites[name]

    def _candidate(self, name: str) -> ModuleSide | None:
        """The plain module whose input or output should be the hook point's tensor."""
        path, _, side = str(self._points[name].name).rpartition(".")
        if side not in ("hook_in", "hook_out"):
            return None
        component = self.bridge
        for part in path.split("."):
            component = component[int(part)] if part.isdigit() else getattr(component, part)
        module = self._twins.get(id(getattr(component, "original_component", None)))
        return None if module is None else ModuleSide(module=module, is_input=side == "hook_in")

    @torch.no_grad()
    def _agrees(self, name: str, site: ModuleSide) -> bool:
        """Whether both routes give the same rows on the probe, up to rounding."""
        expected = self._probe([name]).get(name)
        plain = self._read_until(self.probe_tokens, site)
        # Some architectures flatten contexts and positions into one axis in a part of the block.
        if expected is None or plain is None or plain.dim() < 3:
            return False
        x, reference = (tensor.flatten(2).float() for tensor in (plain, expected))
        if x.shape != reference.shape:
            return False
        error = (x - reference).norm(dim=-1) / reference.norm(dim=-1).clamp_min(1e-30)
        return bool(error.median() < PROBE_AGREEMENT)

    @torch.no_grad()
    def _probe(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The bridge's tensors at hook points for the probe tokens, where they fire."""
        probed: dict[str, Tensor] = {}
        stop_early = len(names) == 1

        def keep(name: str, x: Any, hook: Any) -> None:  # noqa: ARG001
            if isinstance(x, Tensor):
                probed[name] = x if stop_early else x[..., :0].new_empty(x.shape, device="meta")
            if stop_early:
                raise _EverythingSeen

        hooks = [(self._points[name].name, partial(keep, name)) for name in names]
        try:
            with suppress(_EverythingSeen), self.bridge.hooks(fwd_hooks=hooks):
                self.bridge(self.probe_tokens, return_type=None)
        except Exception as error:
            raise ModelError(
                f"transformer_lens cannot run this model ({type(self.plain).__name__}: "
                f"{first_line(error)}): another version of it, or of transformers, may"
            ) from error
        return probed

    def _width_of(self, x: Tensor | None) -> int | None:
        """Entries per token of a tensor of the probe; None where it has no row per token."""
        if x is None or x.dim() not in (3, 4) or x.shape[:2] != self.probe_tokens.shape:
            return None
        return int(x.shape[2:].numel())


def _fires(bridge: Any, name: str, point: Any) -> bool:
    """Whether a hook there can fire: some points are behind switches that saelab leaves off."""
    try:
        bridge.check_hooks_to_add(point, name, lambda x, hook: x)  # noqa: ARG005
    except ValueError:
        return False
    return True


def _is_what_it_says(bridge: Any, name: str, point: Any) -> bool:
    """Whether a name is that of the tensor it stands for in the bridge.

    A mixture of experts has no hidden layer that every token goes through, and the whole MLP's
    input and output stand under its names; an encoder's second norm comes after the MLP, and what
    it reads stands under the name of the residual stream before it.
    """
    others = {"mlp.hook_pre": "mlp.hook_in", "mlp.hook_post": "mlp.hook_out"}
    if getattr(bridge.cfg, "attention_dir", "causal") == "bidirectional":
        others["hook_resid_mid"] = "ln2.hook_in"
    return not any(name.endswith(a) and str(point.name).endswith(b) for a, b in others.items())


@contextmanager
def attached(site: ModuleSide, visit: Visit) -> Iterator[None]:
    """Call `visit` with the module's input or output, and put in what it returns."""

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
        if args:
            new = visit(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        new = visit(kwargs["hidden_states"])
        return None if new is None else (args, {**kwargs, "hidden_states": new})

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:  # noqa: ARG001
        if isinstance(output, tuple | list):
            new = visit(output[0])
            return None if new is None else (new, *output[1:])
        return visit(output)

    if site.is_input:
        handle = site.module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = site.module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def _leaf(x: Tensor) -> Tensor:
    """The same activation as the beginning of an autograd graph; a copy, so that the model may add
    to it in place."""
    return x.detach().requires_grad_(True).clone()


def boot_bridge(
    name: str, folder: Path, model: Any, tokenizer: Any, dtype: torch.dtype, device: torch.device
) -> Any:
    """The TransformerLens bridge around a loaded model, which it rewires in place.

    Args:
        tokenizer: a copy for the bridge, which only looks at it.
    """
    from transformer_lens.model_bridge import TransformerBridge

    # Else it is loaded once more, and transformers asks on the terminal about a model's own code.
    tokenizer.init_kwargs["add_bos_token"] = True
    try:
        with quiet_transformers():
            bridge = TransformerBridge.boot_transformers(
                str(folder), hf_model=model, tokenizer=tokenizer, dtype=dtype, device=device
            )
    except Exception as error:
        raise ModelError(
            f"model {name!r} ({type(model).__name__}) is not supported by transformer_lens "
            f"({first_line(error)})"
        ) from error
    return bridge.eval()
