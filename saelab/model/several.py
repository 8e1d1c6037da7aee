"""Several language models of one tokenizer, fed the same tokens: what a crosscoder over two reads.

Everything about text and tokens is the first model's, since it is every model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

from jaxtyping import Float, Int
from torch import Tensor

from saelab.errors import ModelError, did_you_mean

from .language_model import LanguageModel


class SeveralModels(LanguageModel):
    """Models side by side, whose hook points are named `label/hook point`.

    Args:
        models: by label, of one vocabulary.
    """

    def __init__(self, models: Mapping[str, LanguageModel]):
        vars(self).update(vars(next(iter(models.values()))))
        self.models = dict(models)
        self.name = " + ".join(model.name for model in models.values())
        self.max_context = min(model.max_context for model in models.values())

    def hook_points(self) -> list[str]:
        """Every hook point of every model."""
        return [
            f"{label}/{name}"
            for label, model in self.models.items()
            for name in model.hook_points()
        ]

    def width_at(self, hook_point: str) -> int:
        """Entries per token at a hook point of one of the models."""
        model, name = self._at(hook_point)
        return model.width_at(name)

    def capture(
        self,
        tokens: Int[Tensor, "batch seq"],
        hook_points: Sequence[str],
        after: Int[Tensor, " before"] | None = None,
    ) -> dict[str, Float[Tensor, "batch seq _"]]:
        """Activations at hook points of the models, each from one pass of its model."""
        captured = {}
        for label, model in self.models.items():
            prefix = f"{label}/"
            asked = [n.removeprefix(prefix) for n in hook_points if n.startswith(prefix)]
            if asked:
                activations = model.capture(tokens, asked, after)
                captured |= {prefix + name: activations[name] for name in asked}
        for name in set(hook_points) - set(captured):
            self._at(name)
        return captured

    def require_next_token(self, what: str) -> NoReturn:
        """Refuse what asks for one model's predictions."""
        raise ModelError(
            f"{what} are of one model, and these are {len(self.models)} side by side "
            f"({', '.join(self.models)}): a crosscoder over several models has its rows measured, "
            "and its features read"
        )

    def _at(self, hook_point: str) -> tuple[LanguageModel, str]:
        label, _, name = hook_point.partition("/")
        if label not in self.models:
            raise ModelError(
                f"{hook_point!r} names none of the models {', '.join(self.models)}; "
                f"{did_you_mean(label, self.models)}"
            )
        return self.models[label], name
