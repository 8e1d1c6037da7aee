"""The settings of a training run: where activations come from, which dictionaries learn from them.

`methods` × `d_sae` × `k` × `seeds` dictionaries, of each of `layers` where there are several, are
trained side by side on one stream: every batch is read once and shared.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from saelab.cache.config import HarvestConfig
from saelab.config import Within, local_place, problems_in
from saelab.dictionary.decomposition import ErrorComponent
from saelab.dictionary.site import Site
from saelab.errors import ConfigError, did_you_mean

from .methods import METHODS, MethodOptions

LAYER = "{layer}"
"""What stands in the name of a hook point for the number of a block."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam, its schedule and the clipping before it."""

    learning_rate: Annotated[float, Within(0, low_open=True)] = 3e-3
    """Peak learning rate, for activations normalised to unit variance."""
    beta1: Annotated[float, Within(0, 1, high_open=True)] = 0.9
    """Decay of Adam's mean of gradients."""
    beta2: Annotated[float, Within(0, 1, high_open=True)] = 0.99
    """Decay of Adam's mean of squared gradients."""
    warmup_fraction: Annotated[float, Within(0, 1)] = 0.0
    """Share of the steps over which the rate rises linearly from zero."""
    decay_fraction: Annotated[float, Within(0, 1)] = 0.2
    """Share of the steps, at the end, over which the rate falls linearly to zero."""
    clip_norm: Annotated[float | None, Within(0, low_open=True)] = 1.0
    """Largest norm of a dictionary's whole gradient; None does not clip."""

    def __post_init__(self) -> None:
        problems = problems_in(self)
        if self.warmup_fraction + self.decay_fraction > 1:
            problems.append(
                f"warmup_fraction + decay_fraction is "
                f"{self.warmup_fraction + self.decay_fraction}; it must be at most 1"
            )
        if problems:
            raise ConfigError(problems)


class DictionarySpec(NamedTuple):
    """One dictionary of a run."""

    method: str
    d_sae: int
    k: int
    seed: int
    layer: int | None = None
    """The block it is of, where the run has several."""

    @property
    def name(self) -> str:
        """Its folder's name, unique in the run."""
        of_layer = "" if self.layer is None else f"layer{self.layer:02d}-"
        return f"{of_layer}{self.method}-d{self.d_sae}-k{self.k}-s{self.seed}"


def without_freeze_decoder(plain: Any) -> Any:
    """Plain settings as they are now: until every method had `decoder`, two had its "frozen"."""
    options = plain.get("options") if isinstance(plain, dict) else None
    if not isinstance(options, dict):
        return plain
    renamed = {}
    for method, of_method in options.items():
        if isinstance(of_method, dict) and "freeze_decoder" in of_method:
            of_method = dict(of_method)
            if of_method.pop("freeze_decoder"):
                of_method["decoder"] = "frozen"
        renamed[method] = of_method
    return {**plain, "options": renamed}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run."""

    out: Path = Path("runs/train")
    """Folder of the run; dictionaries, metrics and checkpoints go there."""
    cache: Path | None = None
    """Folder of an activation cache. None: activations are streamed straight from the model."""
    model: str | None = None
    """Model the activations must be of. None: whatever the cache holds, or `stream.model`."""
    hook_point: str | None = None
    """Hook point to train on. None: the cache's, or the first of `stream.hook_points`."""
    reads: tuple[str, ...] = ()
    """Hook points that a transcoder or crosscoder reads, in place of `hook_point`; a `cache` is
    then the folder that holds one of each. Of several models: `label/hook point`, with `cache` the
    folder that holds a folder of caches of each model under its label."""
    writes: tuple[str, ...] = ()
    """Hook points that it writes."""
    cross_layer: bool = False
    """Train cross-layer transcoders: as many `writes` as `reads`, layer by layer, of which each
    latent reads one and writes that layer's and all later ones; or one name with `{layer}` of each,
    and `layers`. `d_sae` and `k` are of all layers together."""
    layers: Annotated[tuple[int, ...], Within(0)] = ()
    """Blocks that `{layer}` in `hook_point`, `reads` and `writes` stands for: dictionaries of each,
    all from one pass. None given: the hook points are those of one dictionary."""
    skip: bool = False
    """Learn an affine skip from what is read to what is written beside the latents."""
    error_component: ErrorComponent | None = None
    """Train on a component of another dictionary's error on these rows: "error" (all of it),
    "linear" (what a probe predicts of it) or "nonlinear" (the rest). None: on the activations."""
    error_of: Path | None = None
    """Folder of the dictionary whose error is meant."""
    error_probe: Path | None = None
    """File of its probe. None: the one that `saelab eval dark-matter` left in its folder."""
    init_from: Path | None = None
    """Folder of a saved dictionary that every dictionary of the run begins from, in place of
    weights drawn at random: fine-tuning. None: drawn."""
    stream: HarvestConfig = field(default_factory=HarvestConfig)
    """What to stream where there is no cache; ignored with one."""
    stream_pool_rows: Annotated[int, Within(1)] = 131_072
    """Rows of the shuffling pool while streaming without a cache."""
    methods: tuple[str, ...] = ("topk",)
    """Training methods."""
    d_sae: Annotated[tuple[int, ...], Within(1)] = (4608,)
    """Widths: numbers of latents."""
    k: Annotated[tuple[int, ...], Within(1)] = (32,)
    """Target mean numbers of active latents per token."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of initial weights. The order of the data follows `data_seed`."""
    data_seed: int = 0
    """Seed of the order in which rows are read."""
    n_tokens: Annotated[int, Within(1)] = 1_000_000
    """Rows to train on, repeats included; rounded up to whole batches."""
    batch_rows: Annotated[int, Within(2)] = 2048
    """Rows in one step."""
    calibration_rows: Annotated[int, Within(1)] = 65_536
    """Rows, read after training, that methods with thresholds fit them to."""
    product_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the encoder's dense product. Weights, codes and gradients are float32 always."""
    device: str = "auto"
    """Device to train on; auto takes a GPU where there is one."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer, schedule and clipping; the same for every dictionary of the run."""
    options: MethodOptions = field(default_factory=MethodOptions)
    """Settings of each method."""
    log_every_steps: Annotated[int, Within(1)] = 20
    """Steps between lines of metrics."""
    checkpoint_every_steps: Annotated[int, Within(1)] = 200
    """Steps between checkpoints. A signal to stop saves one too."""
    verify: bool = False
    """Check every byte of the cache first. Otherwise sizes, times and a sample are checked."""
    wandb_project: str | None = None
    """Weights & Biases project to log to as well. None: no network is touched."""

    def __post_init__(self) -> None:
        if self.model not in (None, HarvestConfig.model):
            object.__setattr__(self, "model", local_place(self.model))
        if self.cross_layer and self.layers and self.reads and not self._layer_problems():
            site = self.site  # All layers are of the one dictionary.
            assert site is not None
            for name, value in (("reads", site.reads), ("writes", site.writes), ("layers", ())):
                object.__setattr__(self, name, value)
        problems = problems_in(self)
        for name in ("methods", "d_sae", "k", "seeds", "layers"):
            values = getattr(self, name)
            if not values and name != "layers":
                problems.append(f"{name} is empty; give at least one")
            if len(set(values)) != len(values):
                problems.append(f"{name} names a value twice: {', '.join(map(str, values))}")
        problems += [
            f"unknown method {name!r}; {did_you_mean(name, METHODS)}"
            for name in self.methods
            if name not in METHODS
        ]
        problems += [
            f"k = {k} is more than d_sae = {d_sae}: a token cannot have more active latents "
            "than there are"
            for d_sae, k in itertools.product(self.d_sae, self.k)
            if k > d_sae
        ]
        if self.n_tokens < self.batch_rows:
            problems.append(
                f"n_tokens = {self.n_tokens} is less than one batch, batch_rows = {self.batch_rows}"
            )
        if self.init_from is not None and len(self.seeds) > 1:
            problems.append(
                "init_from draws no weights, so seeds would train the same dictionary again: give "
                "one"
            )
        problems += self._layer_problems() or self._error_problems() + self._site_problems()
        if not problems:
            problems = self._method_problems()
        if problems:
            raise ConfigError(problems)

    @property
    def site(self) -> Site | None:
        """What the dictionaries read and write, all layers side by side; None: the one hook point
        of their activations."""
        if not self.layers:
            return Site(self.reads, self.writes) if self.reads else None
        sites = [self.site_of(layer) for layer in self.layers]
        reads, writes = (
            tuple(name for site in sites if site for name in getattr(site, role))
            for role in ("reads", "writes")
        )
        return Site(reads, writes)

    def site_of(self, layer: int | None) -> Site | None:
        """What the dictionaries of a layer read and write; None: those of a run without layers."""
        if layer is None:
            return self.site
        reads, writes = (
            tuple(name.replace(LAYER, str(layer)) for name in names)
            for names in (self.reads or (self.hook_point or "",), self.writes or self.reads)
        )
        return Site(reads, writes or reads)

    def _layer_problems(self) -> list[str]:
        """What speaks against several layers."""
        names = [*self.reads, *self.writes, *([] if self.hook_point is None else [self.hook_point])]
        if not self.layers:
            return [
                f"{name} names a {LAYER} and no layers are given: name them with --layers"
                for name in names
                if LAYER in name
            ]
        problems = [
            f"{name} lacks the {LAYER} that layers stand for" for name in names if LAYER not in name
        ]
        if not names:
            problems = [f"layers need a hook_point, or reads and writes, that name a {LAYER}"]
        return problems + [
            f"{name} is of one dictionary, and layers are given: leave one of the two out"
            for name in ("error_component", "init_from")
            if getattr(self, name) is not None
        ]

    def _site_problems(self) -> list[str]:
        """What speaks against what is read and written."""
        if bool(self.reads) != bool(self.writes):
            return ["reads and writes are given together: a sparse autoencoder has hook_point"]
        if self.skip and self.reads == self.writes:
            return [
                "skip: of a dictionary that writes what it reads it would be the identity: give "
                "reads and writes that differ, or leave it out"
            ]
        if not self.reads:
            needed = "cross_layer needs reads and writes: give one hook point of each for a layer"
            return [needed] if self.cross_layer else []
        try:
            site = self.site
            assert site is not None
        except ConfigError as error:
            return list(error.problems)
        if site.models and self.cache is None:
            return [
                f"{site.hook_points[0]} names a model, {site.models[0]}, without a cache: give the "
                f"folder that holds the caches of {' and '.join(site.models)} with --cache"
            ]
        problems = [
            f"{name} is given beside reads and writes: leave it out"
            for name in ("hook_point", "error_component")
            if getattr(self, name) is not None
        ]
        if self.cross_layer:
            problems += self._cross_layer_problems()
        return problems + [
            f"{name} cannot write another hook point than it reads: "
            f"{METHODS[name].autoencodes_only}; leave it out"
            for name in self.methods
            if name in METHODS and METHODS[name].autoencodes_only and not site.is_autoencoder
        ]

    def _cross_layer_problems(self) -> list[str]:
        """What speaks against a transcoder from every layer to all later ones."""
        n = len(self.reads)
        layers = [[_layer_of(name) for name in names] for names in (self.reads, self.writes)]
        first = layers[0][0]
        expected = None if first is None else [*range(first, first + n)]
        if any(given != expected for given in layers):
            read, written = (", ".join(map(str, given)) for given in layers)
            known = {each for given in layers for each in given if each is not None}
            between = set(range(min(known, default=0), max(known, default=0))) - known
            said = f" ({', '.join(map(str, sorted(between)))} missing)" if between else ""
            return [
                f"cross_layer: reads are of layers {read} and writes of layers {written}{said}: "
                "give one of each for every layer, in order and with none missing"
            ]
        problems = [
            f"{name} = {value} does not divide among {n} layers: give a multiple, such as "
            f"{-(-value // n) * n}"
            for name, values in (("d_sae", self.d_sae), ("k", self.k))
            for value in values
            if value % n and (name == "d_sae" or "topk" in self.methods)
        ]
        if self.skip:
            problems.append("skip: a cross-layer transcoder is learnt without one: leave it out")
        if self.init_from is not None:
            problems.append("init_from: a cross-layer transcoder begins from drawn weights")
        problems += [
            f"{name}: decoder_norm is summed, which a cross-layer transcoder has not: leave it out"
            for name in self.methods
            if name in METHODS and getattr(self.options, name).decoder_norm == "summed"
        ]
        able = [name for name in METHODS if METHODS[name].crosses_layers]
        return problems + [
            f"{name} does not train cross-layer transcoders: use {', '.join(able)}"
            for name in self.methods
            if name in METHODS and name not in able
        ]

    def _error_problems(self) -> list[str]:
        """What speaks against training on a dictionary's error."""
        if self.error_component is None:
            return [
                f"{name} is given without error_component: say which component to train on"
                for name in ("error_of", "error_probe")
                if getattr(self, name) is not None
            ]
        problems = []
        if self.error_of is None:
            problems.append("error_component is given without error_of: name the dictionary")
        if self.cache is None:
            problems.append(
                "error_component needs a cache, over which the errors' statistics are taken: give "
                "--cache"
            )
        problems += [
            f"{name} learns from the loss's gradients with respect to activations, which errors "
            "have none of: leave it out, or train on activations"
            for name in self.methods
            if name in METHODS and METHODS[name].needs_gradients
        ]
        return problems

    def _method_problems(self) -> list[str]:
        """What a method cannot do with the shapes and lengths it would be given."""
        problems = [
            f"{spec.method} with d_sae = {spec.d_sae} and k = {spec.k}: {problem}"
            for spec in self.dictionaries()
            for problem in getattr(self.options, spec.method).problems_with(
                d_sae=spec.d_sae, k=spec.k, batch_rows=self.batch_rows, n_steps=self.n_steps
            )
        ]
        return list(dict.fromkeys(problems))

    def methods_that_need_gradients(self) -> list[str]:
        """The methods of this run whose batches must carry gradients."""
        return [name for name in self.methods if METHODS[name].needs_gradients]

    @property
    def n_steps(self) -> int:
        """Steps of the run."""
        return -(-self.n_tokens // self.batch_rows)

    def dictionaries(self) -> list[DictionarySpec]:
        """Every dictionary of the run, in the order they are stepped."""
        return [
            DictionarySpec(*spec, layer)
            for layer in self.layers or (None,)
            for spec in itertools.product(self.methods, self.d_sae, self.k, self.seeds)
        ]


def _layer_of(hook_point: str) -> int | None:
    """The layer that a hook point's name begins with; None: it names none."""
    layer = re.match(r"blocks\.(\d+)\.", hook_point)
    return None if layer is None else int(layer[1])
