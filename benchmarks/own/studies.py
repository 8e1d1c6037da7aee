"""The studies that `own.variants` can do: settings as in a recipe, and what each variant changes."""

from __future__ import annotations

from typing import Any


def planted(n_steps: int, **changes: Any) -> dict[str, Any]:
    """Settings as the recipe `planted` has them."""
    return {
        "hook_point": "planted",
        "seeds": [0, 1, 2],
        "batch_rows": 512,
        "n_tokens": 512 * n_steps,
        "product_dtype": "float32",
        "optimizer": {"learning_rate": 0.001},
        "log_every_steps": 1000,
        "checkpoint_every_steps": 100_000,
        "device": "cpu",
        **changes,
    }


def aux(method: str, **settings: Any) -> dict[str, Any]:
    """A method with these settings of its auxiliary loss."""
    return {"methods": [method], "options": {method: {"auxiliary": settings}}}


ZIPF = {"kind": "zipf", "k_aux": 32, "every_rows": 2}

STUDIES: dict[str, dict[str, Any]] = {
    "aux_zipf_geometric": {
        "preset": "geometric",
        "base": planted(2000, k=[6]),
        "variants": {
            "auxk": aux("mutual_choice", kind="auxk"),
            "none": aux("mutual_choice", kind="none"),
            "zipf, below 0.5": aux("mutual_choice", **ZIPF, underused_below=0.5),
            "zipf, below 0.2": aux("mutual_choice", **ZIPF, underused_below=0.2),
            "zipf, below 0.1": aux("mutual_choice", **ZIPF, underused_below=0.1),
            "zipf, below 0.05": aux("mutual_choice", **ZIPF, underused_below=0.05),
            "zipf, below 0.01": aux("mutual_choice", **ZIPF, underused_below=0.01),
        },
    },
}
