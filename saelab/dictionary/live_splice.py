"""Sites replaced in one pass of the model, each from what it reads in that very pass.

A transcoder behind another one reads what the model makes of the other's output. A cross-layer
transcoder is taken source by source: each reads its hook point when the pass comes to it, before
anything later is written, and every hook point that is written gets the sum over the sources so
far. A crosscoder cannot be: the pass comes to the last of what it reads after the first of what it
writes. Its codes are those of the untouched model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from jaxtyping import Bool, Float, Int
from torch import Tensor

from saelab.errors import ConfigError
from saelab.model.language_model import LanguageModel, ModelOutput

from .architectures import Dictionary
from .layered import in_layers
from .site import Site
from .site_rows import SiteRows, side_by_side

Replace = Callable[[Dictionary, Float[Tensor, "rows d_in"]], Float[Tensor, "rows d_out"]]


def is_crosscoder(site: Site) -> bool:
    """Whether several hook points are read and the same are written."""
    return site.is_autoencoder and len(site.writes) > 1


def sources_of(dictionary: Dictionary, site: Site) -> list[tuple[Callable[[], Dictionary], Site]]:
    """What reads at once, with what opens it: each source of a cross-layer transcoder, or all.

    One that takes the largest of all sources together does not come apart.
    """
    layers = in_layers(dictionary, len(site.reads)) if len(site.reads) > 1 else None
    if layers is None or is_crosscoder(site) or len(site.reads) != len(site.writes):
        return [(lambda: dictionary, site)]
    return [
        (partial(layers.layer, index), Site((read,), site.writes[index:]))
        for index, read in enumerate(site.reads)
    ]


@dataclass(frozen=True, eq=False)
class SplicedPart:
    """What is read at once, and what is added for it at every hook point that it writes."""

    index: int
    """Of the dictionary that it is of; parts of one dictionary add up."""
    site: Site
    """What it reads and writes."""
    keep: Bool[Tensor, "batch seq"]
    """The positions that are replaced; all others keep their activation."""
    replace: Callable[[Float[Tensor, "rows d_in"]], Float[Tensor, "rows d_out"]]
    """From what it reads at these positions to what it adds there."""
    inputs: Float[Tensor, "rows d_in"] | None = None
    """What it reads, where that is not of the pass itself."""


def parts_of(
    index: int, dictionary: Dictionary, site: Site, rows: SiteRows, replace: Replace
) -> list[SplicedPart]:
    """A dictionary as what `LiveSplice` takes.

    Args:
        index: of the dictionary among those spliced together.
        rows: of the untouched model: which positions count, and what a crosscoder reads.
        replace: (a source, what it reads) -> what it adds.
    """
    inputs = rows.inputs if is_crosscoder(site) else None

    def part(opened: Callable[[], Dictionary], of_source: Site) -> SplicedPart:
        def adds(x: Tensor) -> Tensor:
            return replace(opened(), x)

        return SplicedPart(index, of_source, rows.keep, adds, inputs)

    return [part(*source) for source in sources_of(dictionary, site)]


class LiveSplice:
    """A pass of the model with everything replaced that some parts write.

    Args:
        model: the model.
        parts: of one dictionary or several.

    Attributes:
        written: by hook point, what the last pass put at the positions that are replaced.

    Raises:
        ConfigError: two dictionaries write one hook point.
    """

    def __init__(self, model: LanguageModel, parts: Sequence[SplicedPart]):
        self.model, self.parts = model, parts
        self.written: dict[str, Float[Tensor, "rows _"]] = {}
        self._read: dict[str, Tensor] = {}
        self._rows: dict[int, dict[str, Tensor]] = {}
        self._writers: dict[str, list[int]] = {}
        for number, part in enumerate(parts):
            for name in part.site.writes:
                self._writers.setdefault(name, []).append(number)
        for name, writers in self._writers.items():
            if len({parts[number].index for number in writers}) > 1:
                raise ConfigError(f"two of the dictionaries write {name}: give one for each")

    def run(self, tokens: Int[Tensor, "batch seq"], *, gradients: bool = False) -> ModelOutput:
        """The pass, of the contexts that `keep` is of; arguments as of `LanguageModel.run`.

        Raises:
            ConfigError: a part writes before it has read.
        """
        for held in (self.written, self._read, self._rows):
            held.clear()
        splice = {name: partial(self._spliced, name) for name in self._writers}
        read = {name for part in self.parts if part.inputs is None for name in part.site.reads}
        capture = [*(read - splice.keys())]
        return self.model.run(tokens, splice, capture=capture, into=self._read, gradients=gradients)

    def _spliced(self, name: str, activations: Tensor) -> Tensor:
        writers = self._writers[name]
        if any(name in self.parts[number].site.reads for number in writers):
            self._read[name] = activations
        rows = [self._rows_of(number)[name] for number in writers]
        self.written[name] = sum(rows[1:], rows[0])
        replaced = activations.clone()
        replaced[self.parts[writers[0]].keep] = self.written[name].to(activations)
        # Whoever reads here later reads what is written.
        self._read[name] = replaced
        return replaced

    def _rows_of(self, number: int) -> dict[str, Tensor]:
        """What a part adds at each hook point that it writes."""
        if number not in self._rows:
            part = self.parts[number]
            inputs = self._inputs(part) if part.inputs is None else part.inputs
            widths = [self.model.width_at(name) for name in part.site.writes]
            rows = part.replace(inputs).split(widths, dim=1)
            self._rows[number] = dict(zip(part.site.writes, rows, strict=True))
        return self._rows[number]

    def _inputs(self, part: SplicedPart) -> Tensor:
        early = [name for name in part.site.reads if name not in self._read]
        if early:
            raise ConfigError(
                f"{part.site} writes {part.site.writes[0]} before the pass comes to {early[0]}, so "
                "it cannot be spliced into one pass; `saelab eval core` replaces it from what the "
                "untouched model has"
            )
        return side_by_side([self._read[name][part.keep] for name in part.site.reads])
