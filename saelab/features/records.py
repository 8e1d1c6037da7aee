"""What a feature store says about a feature, as plain values and numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer


@dataclass(frozen=True, eq=False)
class Example:
    """A window of a context, piece by piece.

    A piece is a token, or several tokens that only together are whole characters; its activation
    is the largest of theirs.
    """

    sequence: int
    """Which context of the store's text this is from."""
    texts: tuple[str, ...]
    """Text of each piece; bytes that are no character anywhere show as "�"."""
    token_ids: tuple[tuple[int, ...], ...]
    """Tokens of each piece."""
    positions: Integer[np.ndarray, " pieces"]
    """Position in the context of each piece's first token."""
    activations: Float[np.ndarray, " pieces"]
    """Activation of the feature at each piece; 0 where it is silent."""
    counted: Bool[np.ndarray, " pieces"]
    """False where no token of the piece is a row (BOS, separators, rows of excessive norm)."""
    anchor: int
    """Piece this example is about: its largest activation, or the one drawn at random."""
    value: float
    """Activation at the anchor; 0 where the feature is silent."""
    other_feature: int | None = None
    """In a near miss, the decoder neighbour that is active at the anchor."""
    other_value: float | None = None
    """In a near miss, that neighbour's activation."""


@dataclass(frozen=True, eq=False)
class QuantileGroup:
    """A stratum of the sequence maxima, `low` ≤ maximum < `high`, and contexts drawn from it."""

    low: float
    """Lower edge, in the stratum; 0 for the lowest stratum."""
    high: float
    """Upper edge, not in the stratum; the highest stratum holds its upper edge, the maximum."""
    n_sequences: int
    """Contexts whose maximum is in the stratum."""
    n_activations: int
    """Active tokens whose activation is in the stratum."""
    share_of_activations: float
    """Those tokens as a fraction of all active tokens."""
    share_of_mass: float
    """Their summed activation as a fraction of the sum over all active tokens."""
    examples: tuple[Example, ...]
    """Contexts drawn at random from the stratum."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts in bins of equal width; an inner edge belongs to the bin above it."""

    edges: Float[np.ndarray, " bins_plus_one"]
    counts: Integer[np.ndarray, " bins"]


@dataclass(frozen=True)
class ActivationMoments:
    """Moments of a distribution, computed in float64; None where undefined."""

    mean: float | None
    standard_deviation: float | None
    """Square root of the mean squared deviation."""
    skewness: float | None
    """Mean cubed deviation over the cubed standard deviation."""
    kurtosis: float | None
    """Mean fourth power of the deviation over the squared variance; 3 for a normal one."""


@dataclass(frozen=True)
class TokenScore:
    """A token and what the feature adds to its logit, per unit of activation."""

    token_id: int
    text: str
    value: float


@dataclass(frozen=True, eq=False)
class LogitLens:
    """What the feature's decoder row adds to the logits if nothing came between."""

    top: tuple[TokenScore, ...]
    """Tokens it promotes most, falling."""
    bottom: tuple[TokenScore, ...]
    """Tokens it suppresses most, rising."""
    histogram: Histogram
    """Over the whole vocabulary, as are the moments."""
    moments: ActivationMoments


@dataclass(frozen=True)
class Neighbour:
    """Another feature and how near it is."""

    feature: int
    value: float
    """Cosine, Jaccard index or Pearson correlation, as the list it is in says."""
    n_both: int | None = None
    """Tokens on which both are active; None for cosines."""


@dataclass(frozen=True, eq=False)
class FeatureRecord:
    """Everything the store knows of a feature."""

    id: int
    n_active: int
    """Counted tokens on which it is active."""
    n_tokens: int
    density: float | None
    """`n_active` / `n_tokens`; None where no token was counted."""
    n_sequences: int
    max_act: float
    """Largest activation; 0 if never active."""
    moments: ActivationMoments
    """Of its positive activations."""
    quantiles: tuple[tuple[float, float], ...]
    """(level, value) of its positive activations, interpolated linearly; empty if never active."""
    histogram: Histogram | None
    """Of its positive activations, from 0 to the maximum; None if never active."""
    flags: tuple[str, ...]
    """Of "dead" (never active), "rare" and "dense" (bounds in the manifest)."""
    decoder_norm: float
    """Euclidean norm of its decoder row."""
    encoder_norm: float
    """Euclidean norm of its encoder column."""
    encoder_bias: float | None
    """Its encoder bias; for a gated dictionary that of the gate."""
    threshold: float | None
    """Its threshold, in a JumpReLU dictionary."""
    map_xy: tuple[float, float] | None
    """Its coordinates on the 2-D map of decoder directions."""
    top_examples: tuple[Example, ...]
    """Contexts with the highest maxima, one window each, no two alike."""
    quantile_groups: tuple[QuantileGroup, ...]
    """Strata of the sequence maxima, from the highest down."""
    random_positives: tuple[Example, ...]
    """Tokens drawn uniformly from all on which it is active."""
    near_misses: tuple[Example, ...]
    """Contexts of its decoder neighbours in which it is silent."""
    random_silent: tuple[Example, ...]
    """Contexts drawn from all in which it is silent."""
    logit_lens: LogitLens | None
    """None where the store was built without a language model."""
    decoder_neighbours: tuple[Neighbour, ...]
    """Highest cosine of decoder rows."""
    encoder_neighbours: tuple[Neighbour, ...]
    """Highest cosine of encoder columns."""
    coactive_jaccard: tuple[Neighbour, ...]
    """Highest tokens-with-both over tokens-with-either."""
    coactive_pearson: tuple[Neighbour, ...]
    """Highest correlation of the activations over all counted tokens."""
    top_tokens: tuple[str, ...]
    """Texts of the anchors of the top examples, each once."""
