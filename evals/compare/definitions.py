"""What every column of a comparison means, in words that travel with it."""

from __future__ import annotations

from typing import NamedTuple

from .latent_use import (
    LARGEST_TARGET,
    TARGET_EXPONENT,
    TARGET_OFFSET,
    UNDERUSED_BELOW,
)


class Column(NamedTuple):
    """A number of a dictionary: its heading, unit and meaning."""

    heading: str
    unit: str
    definition: str


CORE = {
    "l0_mean": "L0",
    "fvu": "FVU",
    "loss_recovered_mean": "loss recovered (mean)",
    "loss_recovered_zero": "loss recovered (zero)",
    "kl": "KL",
    "dead_fraction": "dead",
    "l0_std": "L0 sd over tokens",
}
"""Metrics of the suite core that are columns, with their headings; definitions are the suite's."""

CONSISTENCY = {
    "mcs_share": "found again",
    "mcs_mean": "mean MCS",
    "mcs_random": "random MCS",
}
"""Metrics of the suite consistency that are columns."""

STEERING = {
    "steering_size": ("steering size", "size", "mean"),
    "steering_size_random": ("random size", "size", "random_mean"),
    "steering_consistency": ("steering consistency", "consistency", "mean"),
    "steering_consistency_random": ("random consistency", "consistency", "random_mean"),
}
"""Columns from the suite steering: heading, and which quantity and statistic of the suite it is."""

OWN: dict[str, Column] = {
    "underused_fraction": Column(
        "underused",
        "1",
        f"Fraction of the latents whose density is below {UNDERUSED_BELOW:g} × their target, dead "
        f"ones included. The target of the latent of rank r by density is min({LARGEST_TARGET:g}, "
        "L0 × p(r)), with the measured L0 and p the shares of Zipf's law, proportional to "
        f"(r + {TARGET_OFFSET:g})^-{TARGET_EXPONENT:g}: the same law for all methods.",
    ),
    "effective_latents": Column(
        "effective latents",
        "latents",
        "exp(H(f / Σf)) with f the densities and H the entropy in nats: how many latents that fire "
        "equally often would be as evenly used.",
    ),
    "zipf_exponent": Column(
        "Zipf slope",
        "1",
        "Exponent s of Zipf's law, density ∝ (rank + q)^-s, fitted by least squares of log density "
        "over ranks 1 % to 70 % of the latents that fired, q from a grid.",
    ),
    "zipf_offset": Column("Zipf offset", "ranks", "Offset q of the same fit."),
    "zipf_r_squared": Column(
        "Zipf R²",
        "1",
        "Share of the variance of log density over the fitted ranks that the law explains.",
    ),
    "zipf_tail_gap": Column(
        "Zipf tail gap",
        "nats",
        "Log of the law's density less log of the measured one, at the last rank that fired: above "
        "0 the rarest latents fire less often than the law says.",
    ),
    "train_seconds": Column(
        "train seconds",
        "s",
        "Mean time of a training step of this dictionary, times its steps; reading of activations "
        "and logging are not in it.",
    ),
    "state_mib": Column(
        "state MiB",
        "MiB",
        "Memory that training holds of this dictionary between steps: parameters, optimizer "
        "moments and statistics, in 2^20 bytes.",
    ),
}
"""Columns made here."""

SPREAD = (
    "Numbers are mean ± standard deviation over seeds (sample standard deviation, n − 1 in the "
    "denominator); “—” stands for a spread of fewer than two seeds, and for what was not measured "
    "or is undefined."
)
