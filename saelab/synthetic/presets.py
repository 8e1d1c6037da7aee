"""The planted dictionaries that scores are quoted on, and the grids along which two are varied.

* `imbalanced`    rows of 3 and of 20 features: breaks a fixed number of active latents
* `geometric`     frequencies from 0.1 to 0.002: the long tail
* `resonance`     equal frequencies, for a map over width and number of active features
* `cooccurrence`  `geometric` with partners, for a curve over the partners' probability
* `smoke`         small and quick, for tests: it does not rank methods

The names stand for A, B, C, D and S of the benchmark that they were first scored on.
"""

from __future__ import annotations

import math
from dataclasses import replace

from saelab.errors import ConfigError, did_you_mean

from .config import BernoulliSupportConfig, ExactSupportConfig, PlantedConfig

_LONG_TAIL = BernoulliSupportConfig(highest=0.1, lowest=0.002)
_GEOMETRIC = PlantedConfig(n_features=256, d_in=64, support=_LONG_TAIL)

PRESETS: dict[str, PlantedConfig] = {
    "imbalanced": PlantedConfig(
        n_features=128,
        d_in=42,
        support=ExactSupportConfig(active=(3, 20)),
        coefficient_low=1.0,
        coefficient_high=1.0,
    ),
    "geometric": _GEOMETRIC,
    "resonance": PlantedConfig(
        n_features=1024,
        d_in=64,
        support=ExactSupportConfig(active=(3,)),
        coefficient_low=1.0,
        coefficient_high=1.0,
    ),
    "cooccurrence": replace(_GEOMETRIC, partner_probability=0.2),
    "smoke": PlantedConfig(n_features=64, d_in=24, support=_LONG_TAIL),
}

LATENTS_PER_FEATURE: dict[str, int] = {name: 4 if name == "resonance" else 2 for name in PRESETS}
"""Width of a dictionary, in true features, at which the scores of a preset are quoted."""

RESONANCE_WIDTHS = (8, 16, 32, 64, 128)
RESONANCE_ACTIVE = (3, 5, 8)
COOCCURRENCE_PROBABILITIES = (0.0, 0.05, 0.1, 0.2, 0.5, 0.8)


def find_preset(name: str) -> PlantedConfig:
    """The preset of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; {did_you_mean(name, PRESETS)}")
    return PRESETS[name]


def preset_name(config: PlantedConfig) -> str:
    """The preset that a config is of, or "custom".

    Seed and number of rows are free in every preset, and so is what it is meant to be varied by:
    width and active features of `resonance`, the partners' probability of `cooccurrence`.
    """
    for name, preset in PRESETS.items():
        fitted = replace(preset, seed=config.seed, n_rows=config.n_rows)
        if name == "resonance" and isinstance(config.support, ExactSupportConfig):
            fitted = replace(fitted, d_in=config.d_in, support=config.support)
        if name == "cooccurrence":
            fitted = replace(fitted, partner_probability=config.partner_probability)
        if fitted == config:
            return name
    return "custom"


def resonance_grid(n_features: int = 1024) -> list[PlantedConfig]:
    """The planted dictionaries of the resonance map: every width with every number of features."""
    return [
        replace(
            PRESETS["resonance"],
            n_features=n_features,
            d_in=d_in,
            support=ExactSupportConfig(active=(active,)),
        )
        for d_in in RESONANCE_WIDTHS
        for active in RESONANCE_ACTIVE
    ]


def resonance_band(config: PlantedConfig) -> tuple[float, float]:
    """Firing frequencies p at which bias adaptation is predicted to recover the features.

    f ≲ p ≲ min(√f, f·d), with f the features' own frequency (Theorem 6.1 of the paper).

    Raises:
        ConfigError: the features are not all equally frequent.
    """
    if not isinstance(config.support, ExactSupportConfig) or config.n_children:
        raise ConfigError("the resonance band is defined where all features are equally frequent")
    frequency = sum(config.support.active) / len(config.support.active) / config.n_features
    return frequency, min(math.sqrt(frequency), frequency * config.d_in)


def cooccurrence_grid() -> list[PlantedConfig]:
    """The planted dictionaries of the co-occurrence curve."""
    return [
        replace(PRESETS["cooccurrence"], partner_probability=probability)
        for probability in COOCCURRENCE_PROBABILITIES
    ]
