"""What the settings of every method have in common, and those that several share; free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from saelab.config import OMIT_DEFAULT, Within, problems_in
from saelab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AuxiliaryOptions:
    """Which latents the auxiliary loss works on, and how strongly."""

    kind: Literal["auxk", "zipf", "none"] = "auxk"
    """`auxk`: latents silent for `dead_after_tokens`. `zipf`: latents that fire less often than
    `underused_below` times what Zipf's law gives their rank. `none`: no auxiliary loss."""
    weight: Annotated[float, Within(0)] = 1 / 32
    """Weight of the loss."""
    k_aux: Annotated[int, Within(1)] = 64
    """Latents of the set that each token may use."""
    every_rows: Annotated[int, Within(1)] = 1
    """The loss is taken on every so many-th row of a batch; rows come in random order, so it is
    an unbiased estimate of that of all, at a fraction of the cost."""
    dead_after_tokens: Annotated[int, Within(1)] = 100_000
    """A latent without a positive code for this many tokens counts as dead."""
    density_horizon_tokens: Annotated[int, Within(1)] = 100_000
    """Tokens over which a latent's density is averaged, for `zipf`."""
    underused_below: Annotated[float, Within(0, 1, low_open=True)] = 0.1
    """Share of its Zipf target below which a latent counts as underused, for `zipf`. At a half,
    latents of rare features were pulled to other rows' errors (docs/results.md)."""
    zipf_exponent: Annotated[float | None, Within(0)] = None
    """Exponent of the law that targets follow, for `zipf`. None: exponent and offset are fitted to
    the densities of the head of ranks, again and again, starting from 1 and `zipf_offset`."""
    zipf_offset: Annotated[float, Within(0)] = 10.0
    """Offset added to the rank in that law, for `zipf`."""
    largest_density: Annotated[float, Within(0, 1, low_open=True)] = 0.5
    """Largest target density of a latent, for `zipf`."""

    def __post_init__(self) -> None:
        problems = problems_in(self)
        if problems:
            raise ConfigError([f"auxiliary.{problem}" for problem in problems])


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Settings that each method has."""

    learning_rate: Annotated[float | None, Within(0, low_open=True)] = None
    """Peak learning rate of this method. None: the run's."""
    auxiliary: AuxiliaryOptions = field(default_factory=AuxiliaryOptions)
    """The auxiliary loss that keeps latents in use."""
    decoder: Literal["free", "frozen", "soft-frozen"] = field(default="free", metadata=OMIT_DEFAULT)
    """`frozen`: the decoder's rows stay as they were drawn (or as `init_from` gave them) while
    encoder and biases learn; `soft-frozen`: they stay within `decoder_cosine` of that. Controls for
    what learnt directions contribute (arXiv 2602.14111)."""
    decoder_cosine: Annotated[float, Within(0, 1)] = field(default=0.8, metadata=OMIT_DEFAULT)
    """Least cosine of a decoder row with its start, for `soft-frozen`."""
    decoder_norm: Literal["joint", "summed"] = field(default="joint", metadata=OMIT_DEFAULT)
    """Norm of a decoder row, in whose units latents are selected and penalised, where several hook
    points are written: of the whole row, or the sum of its norms at each."""

    def __post_init__(self) -> None:
        problems = self.problems()
        if problems:
            raise ConfigError(problems)

    def problems(self) -> list[str]:
        """Everything wrong with the settings by themselves."""
        return problems_in(self)

    def problems_with(self, *, d_sae: int, k: int, batch_rows: int, n_steps: int) -> list[str]:
        """Everything wrong with the settings for a dictionary of this shape in a run this long."""
        del d_sae, k, batch_rows, n_steps
        return []


@dataclass(frozen=True, kw_only=True)
class SparsityOptions(CommonOptions):
    """Settings that methods with a sparsity penalty share."""

    sparsity_weight: Annotated[float | None, Within(0)] = None
    """Weight λ of the sparsity penalty, held for the whole run: what one unit of the penalty costs
    in squared error of normalised activations. None: controlled so that L0 reaches k."""
    start_l0_factor: Annotated[float, Within(0.1)] = 1.0
    """L0 of the first batch as a multiple of k: thresholds or biases are set to it once."""
    encoder_scale: Annotated[float, Within(1e-6)] = 0.5
    """Norm of each latent's encoder weights at the start; 1 would tie them to the decoder's."""

    def problems_with(self, *, d_sae: int, k: int, batch_rows: int, n_steps: int) -> list[str]:
        """Everything wrong with the settings for a dictionary of this shape in a run this long."""
        del batch_rows, n_steps
        if self.sparsity_weight is not None or k <= d_sae // 2:
            return []
        return [
            f"target L0 not reachable: a penalty can only lower L0, and without one about half "
            f"of the d_sae = {d_sae} pre-activations of a token are positive; take k = "
            f"{d_sae // 2} or less, or d_sae = {2 * k} or more"
        ]
