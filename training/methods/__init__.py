"""Every training method by its name on the command line.

A new paper is one new file here, its line in `METHODS`, and its field in `MethodOptions`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..options import AuxiliaryOptions
from .bias_adaptation import (
    BiasAdaptation,
    BiasAdaptationOptions,
    GroupBiasAdaptationOptions,
)
from .feature_choice import FeatureChoice, FeatureChoiceOptions
from .gated import Gated, GatedOptions
from .gradient_topk import GradientTopK, GradientTopKOptions
from .jumprelu import JumpReLU, JumpReLUOptions
from .matryoshka import Matryoshka, MatryoshkaOptions
from .mutual_choice import MutualChoice, MutualChoiceOptions
from .relu import ReLU, ReLUOptions
from .topk import TopK, TopKOptions

METHODS: dict[str, Any] = {
    "topk": TopK,
    "gradient_topk": GradientTopK,
    "mutual_choice": MutualChoice,
    "batch_topk": MutualChoice,
    "feature_choice": FeatureChoice,
    "matryoshka": Matryoshka,
    "bias_adaptation": BiasAdaptation,
    "group_bias_adaptation": BiasAdaptation,
    "relu": ReLU,
    "gated": Gated,
    "jumprelu": JumpReLU,
}
"""Name to the class of the method, which is made from `DictionarySettings` and its options."""


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """The settings of every method; each method reads only those under its own name."""

    topk: TopKOptions = field(default_factory=TopKOptions)
    """Settings of `topk`."""
    gradient_topk: GradientTopKOptions = field(default_factory=GradientTopKOptions)
    """Settings of `gradient_topk`."""
    mutual_choice: MutualChoiceOptions = field(default_factory=MutualChoiceOptions)
    """Settings of `mutual_choice`."""
    batch_topk: MutualChoiceOptions = field(
        default_factory=lambda: MutualChoiceOptions(auxiliary=AuxiliaryOptions())
    )
    """Settings of `batch_topk`: the selection of `mutual_choice` with AuxK."""
    feature_choice: FeatureChoiceOptions = field(default_factory=FeatureChoiceOptions)
    """Settings of `feature_choice`."""
    matryoshka: MatryoshkaOptions = field(default_factory=MatryoshkaOptions)
    """Settings of `matryoshka`."""
    bias_adaptation: BiasAdaptationOptions = field(default_factory=BiasAdaptationOptions)
    """Settings of `bias_adaptation`."""
    group_bias_adaptation: GroupBiasAdaptationOptions = field(
        default_factory=GroupBiasAdaptationOptions
    )
    """Settings of `group_bias_adaptation`: `bias_adaptation` with ten groups."""
    relu: ReLUOptions = field(default_factory=ReLUOptions)
    """Settings of `relu`."""
    gated: GatedOptions = field(default_factory=GatedOptions)
    """Settings of `gated`."""
    jumprelu: JumpReLUOptions = field(default_factory=JumpReLUOptions)
    """Settings of `jumprelu`."""
