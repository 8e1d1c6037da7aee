"""Where in a language model a dictionary works: what it reads and what it writes.

A sparse autoencoder reads and writes one hook point. A transcoder reads one and writes another; a
crosscoder reads and writes several, whose activations stand side by side in the order of the site.
Hook points of several models are named `label/hook point`, where a label stands for a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saelab.errors import ConfigError


@dataclass(frozen=True)
class Site:
    """The hook points that a dictionary reads and those that it writes.

    Raises:
        ConfigError: no hook point, an empty name, or one named twice.
    """

    reads: tuple[str, ...]
    """Hook points whose activations are encoded, side by side in this order."""
    writes: tuple[str, ...]
    """Hook points whose activations are reconstructed, side by side in this order."""

    def __post_init__(self) -> None:
        problems = []
        for role in ("reads", "writes"):
            names = getattr(self, role)
            if not isinstance(names, tuple) or not names:
                problems.append(f"{role}: {names!r} names no hook point; give at least one")
            elif not all(isinstance(name, str) and name for name in names):
                problems.append(f"{role}: {list(names)} holds something that is no hook point")
            elif len(set(names)) != len(names):
                problems.append(f"{role}: {list(names)} names a hook point twice")
        named = [str(n) for n in (*self.reads, *self.writes)]
        if not problems and len({"/" in name for name in named}) > 1:
            problems.append(f"{named}: name a model at each (label/hook point), or at none")
        if problems:
            raise ConfigError(problems)

    @classmethod
    def of(cls, hook_point: str) -> Site:
        """The site of a sparse autoencoder."""
        return cls((hook_point,), (hook_point,))

    @property
    def is_autoencoder(self) -> bool:
        """Whether what is written is what is read."""
        return self.reads == self.writes

    @property
    def hook_points(self) -> tuple[str, ...]:
        """Every hook point once: those read, then those only written."""
        return tuple(dict.fromkeys(self.reads + self.writes))

    @property
    def models(self) -> tuple[str, ...]:
        """Labels of the models whose hook points these are; empty where there is one model."""
        return tuple(dict.fromkeys(n.split("/")[0] for n in self.hook_points if "/" in n))

    @property
    def hook_point(self) -> str:
        """The one hook point of a sparse autoencoder.

        Raises:
            ConfigError: the site has several.
        """
        if len(self.hook_points) > 1:
            raise ConfigError(
                f"{self} has no single hook point: this needs a sparse autoencoder, which reads "
                "and writes the same one"
            )
        return self.reads[0]

    def __str__(self) -> str:
        if self.is_autoencoder:
            return " + ".join(self.reads)
        return f"{' + '.join(self.reads)} -> {' + '.join(self.writes)}"

    def to_json(self) -> dict[str, list[str]]:
        """The site as plain JSON values."""
        return {"reads": list(self.reads), "writes": list(self.writes)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Site:
        """The site that a file recorded.

        Raises:
            ConfigError: `content` is not a site.
        """
        if not isinstance(content, Mapping) or set(content) != {"reads", "writes"}:
            raise ConfigError(
                f"{content!r} is no site; expected the lists 'reads' and 'writes' of hook points"
            )
        reads, writes = content["reads"], content["writes"]
        if not isinstance(reads, list) or not isinstance(writes, list):
            raise ConfigError(f"the site {content!r} must hold two lists of hook points")
        return cls(tuple(reads), tuple(writes))


def hook_point_of(module: str) -> str | None:
    """TransformerLens' name of a Hugging Face module's output, from the module's path."""
    if module.split(".")[-1] in ("embed_tokens", "embed_in", "wte"):
        return "hook_embed"
    layer = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)(?:\.(\w+))?$", module)
    if layer is None:
        return None
    ends = {None: "hook_resid_post", "mlp": "hook_mlp_out"}
    ends |= dict.fromkeys(("attn", "self_attn", "attention"), "hook_attn_out")
    end = ends.get(layer[2])
    return None if end is None else f"blocks.{layer[1]}.{end}"
