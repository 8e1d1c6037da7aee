"""How long a model's contexts may be, known without loading it."""

from __future__ import annotations

from saelab.errors import ConfigError
from saelab.formats.files import read_json

from .model_files import resolve_model


def require_context(name: str, context_length: int) -> None:
    """Refuse contexts too long for a model by what its config says, without loading it.

    Raises:
        ConfigError: they are; where the config does not say, loading finds out.
        ModelError: no such model.
    """
    config = read_json(resolve_model(name).folder / "config.json")
    limits = [config.get(key) for key in ("max_position_embeddings", "n_positions")]
    longest = max((limit for limit in limits if isinstance(limit, int)), default=context_length)
    if 0 < longest < context_length:
        raise ConfigError(
            f"context_length: {context_length} is longer than the {longest} tokens that {name} "
            "takes"
        )
