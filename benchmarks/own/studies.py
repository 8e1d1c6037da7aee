"""The studies of `own.variants`: settings as in a recipe, and what each variant changes."""

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


def rows(n_steps: int, **changes: Any) -> dict[str, Any]:
    """Settings for short runs on rows of a language model."""
    changes = {"batch_rows": 512, "n_tokens": 512 * n_steps, "d_sae": [1152], **changes}
    return {
        k: v for k, v in planted(n_steps).items() if k not in ("hook_point", "optimizer")
    } | changes


def aux(method: str, **settings: Any) -> dict[str, Any]:
    """A method with these settings of its auxiliary loss."""
    return {"methods": [method], "options": {method: {"auxiliary": settings}}}


def gba(highest: float, *, tied: bool, rate: float, **settings: Any) -> dict[str, Any]:
    """Group bias adaptation with this target of its first group."""
    options = {
        "learning_rate": rate,
        "b_pre": "zero",
        "highest_frequency": highest,
        "lowest_frequency": 0.001,
        "update_every_steps": 5,
        "tied": tied,
        **settings,
    }
    return {"methods": ["group_bias_adaptation"], "options": {"group_bias_adaptation": options}}


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
    "gba_rates_geometric": {
        "preset": "geometric",
        "base": planted(1500, k=[6], seeds=[0]),
        "variants": {
            f"{'tied' if tied else 'untied'}, rate {rate:g}": gba(0.2, tied=tied, rate=rate)
            for tied in (True, False)
            for rate in (1e-3, 3e-3, 1e-2)
        },
    },
    "gba_planted": {
        "preset": "geometric",
        "base": planted(1500, k=[6]),
        "variants": {
            f"{'tied' if tied else 'untied'}, highest {highest:g}": gba(
                highest, tied=tied, rate=1e-2
            )
            for highest in (0.05, 0.2, 0.5)
            for tied in (True, False)
        },
    },
    "aux_zipf_imbalanced": {
        "preset": "imbalanced",
        "base": planted(1000, k=[12], seeds=[0]),
        "variants": {
            f"zipf, below {below:g}": aux("mutual_choice", **ZIPF, underused_below=below)
            for below in (0.5, 0.1)
        },
    },
    "aux_zipf_rows": {
        "base": rows(300, k=[16], seeds=[0, 1]),
        "variants": {
            "auxk, weight 0.1, 20k": aux(
                "mutual_choice", kind="auxk", weight=0.1, dead_after_tokens=20_000
            ),
            "zipf, below 0.5": aux("mutual_choice", **ZIPF, underused_below=0.5),
            "zipf, below 0.1": aux("mutual_choice", **ZIPF, underused_below=0.1),
        },
    },
    "gba_rows": {
        "base": rows(250, k=[32], seeds=[0], d_sae=[768]),
        "variants": {
            "topk": {"methods": ["topk"]},
            **{
                f"{'tied' if tied else 'untied'}, rate {rate:g}": {
                    "methods": ["group_bias_adaptation"],
                    "options": {"group_bias_adaptation": {"tied": tied, "learning_rate": rate}},
                }
                for tied, rate in ((True, 1e-2), (False, 1e-2))
            },
        },
    },
    "jumprelu_rows": {
        "base": rows(245, k=[16], seeds=[0], d_sae=[768], methods=["jumprelu"], log_every_steps=15),
        "variants": {
            "default": {},
            "starts at k": {"options": {"jumprelu": {"start_l0_factor": 1.0}}},
        },
    },
    "matryoshka_imbalanced": {
        "preset": "imbalanced",
        "base": planted(1000, k=[12], seeds=[0], methods=["matryoshka"]),
        "variants": {
            "default": {},
            "from a quarter": {"options": {"matryoshka": {"prefix_shares": [0.25, 0.5, 1]}}},
            "one prefix": {"options": {"matryoshka": {"prefix_shares": [1]}}},
            "from a half, a tenth of the weight": {
                "options": {"matryoshka": {"prefix_shares": [0.5, 1], "prefix_weights": [1, 9]}}
            },
            "from a half": {"options": {"matryoshka": {"prefix_shares": [0.5, 1]}}},
            "weights 1 to 16": {"options": {"matryoshka": {"prefix_weights": [1, 2, 4, 8, 16]}}},
        },
    },
    "gradient_topk_geometric": {
        "preset": "geometric",
        "base": planted(1000, k=[6], seeds=[0], methods=["gradient_topk"]),
        "variants": {
            "true": {},
            "decode boosted": {"options": {"gradient_topk": {"decode_boosted": True}}},
            "shuffled": {"options": {"gradient_topk": {"shuffle_gradients": True}}},
            "none": {"options": {"gradient_topk": {"beta": 0.0}}},
        },
    },
    "gradient_noise_geometric": {
        "preset": "geometric",
        "noise": True,
        "base": planted(1000, k=[6], seeds=[0], methods=["gradient_topk"]),
        "variants": {"noise": {}},
    },
}
