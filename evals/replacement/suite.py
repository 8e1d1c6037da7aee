"""The suite "replacement": a set of dictionaries spliced into one pass, such as one for each layer.

Each reads what the model makes of the others' output, a cross-layer transcoder layer by layer;
crosscoders read the untouched model. Replacement and completeness scores of whole attribution
graphs (circuit-tracer) need graphs; what can be said without is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from saelab.config import Within
from saelab.formats.evaluation_result import EvaluationResult

from ..core.config import WINDOW
from ..definitions import Definition, filled_in
from ..suite import HeldOutConfig, Suite, deferred

_ON = "on {n_loss_positions} predicted positions of {n_loss_documents} held-out documents"
_ENDS = {
    f"{name}_{end}": f"{'Lower' if end == 'low' else 'Upper'} end of the 95 % interval of {name} "
    "over documents (bootstrap)."
    for name in ("loss_recovered_zero", "loss_recovered_mean", "kl")
    for end in ("low", "high")
}
_DIRECTION = (
    "u = gain of the final norm ∘ (unembedding of that token - mean unembedding) / s, with s what "
    "the norm divides by, frozen as it was in the untouched model. Null where something is not "
    "written to the residual stream."
)
MEANINGS = {
    "Effect on the model": {
        "loss_clean": f"Mean next-token loss of the untouched model, {_ON}.",
        "loss_spliced": "The same with all {n_dictionaries} dictionaries spliced in, each from "
        "what it reads in that pass (a crosscoder: in the untouched model); excluded rows keep "
        "their activation in every condition.",
        "loss_zero_ablation": "The same with zero in place of all that they write.",
        "loss_mean_ablation": "The same with each one's mean of training in place of what it "
        "writes; null where one recorded none.",
        "loss_recovered_zero": "(loss_zero_ablation - loss_spliced) / (loss_zero_ablation - "
        "loss_clean): 1 is as good as the untouched model, 0 as bad as zero ablation.",
        "loss_recovered_mean": "The same against loss_mean_ablation.",
        "kl": f"KL(untouched || spliced) of the next token, mean {_ON}.",
        "same_top_token": "Share of these positions where both models have the same likeliest next "
        "token.",
        **_ENDS,
    },
    "What is left out": {
        "error_share": "Mean over the {n_hook_points} hook points that are written of "
        "sum |y - ŷ|² / sum |y|², with y what the untouched model has there and ŷ what is written "
        "from what is read in it.",
        "error_share_spliced": "The same with ŷ written in the pass where all are spliced in: what "
        "earlier dictionaries leave out changes what later ones read.",
        "compounding": "(loss_spliced - loss_clean) over the sum of what each dictionary (each "
        "hook point of a crosscoder) costs when it is spliced in alone: 1 where costs add up. Null "
        "where that was not measured, or the sum is not positive.",
    },
    "Direct effect on the logits": {
        "error_effect_share": "Sum |e·u| / sum (|e·u| + |ŷ·u|) over rows and hook points, in the "
        "untouched model, with e = y - ŷ: how much of what is written reaches the logit of the "
        f"likeliest next token as error. {_DIRECTION}",
        "logit_completeness": "Sum over active latents of |a| / (that + sum |e·u|), with a what a "
        "latent adds along u over all that it writes: of the edges of an attribution graph that "
        "end at the logits, the share that comes from these dictionaries' latents rather than "
        f"their errors (completeness of the logit nodes, Ameisen et al. 2025). {_DIRECTION}",
    },
    "What was counted": {
        "n_dictionaries": "Dictionaries spliced in.",
        "n_hook_points": "Hook points that they write.",
        "n_loss_positions": "Predicted positions.",
        "n_loss_documents": "Held-out documents that they are of.",
    },
}
_LOSSES = [name for name in MEANINGS["Effect on the model"] if name.startswith("loss_")]


def definitions(facts: Mapping[str, Any]) -> list[Definition]:
    """Every number of the suite."""
    nats = [name for name in _LOSSES if "recovered" not in name] + ["kl", "kl_low", "kl_high"]
    lower = ("loss_spliced", "kl", "error_share", "error_share_spliced", "error_effect_share")
    higher = ("loss_recovered_zero", "loss_recovered_mean", "same_top_token", "logit_completeness")
    return filled_in(
        MEANINGS,
        facts,
        units=dict.fromkeys(nats, "nats per token")
        | {"n_dictionaries": "dictionaries", "n_loss_positions": "positions"}
        | {"n_loss_documents": "documents", "n_hook_points": "hook points"},
        better={**dict.fromkeys(lower, "lower"), **dict.fromkeys(higher, "higher")},
    )


@dataclass(frozen=True, kw_only=True)
class ReplacementConfig(HeldOutConfig):
    """On how much held-out text a set of dictionaries is spliced in, and where the result goes."""

    PROTOCOL = f"losses in float32, on windows of {WINDOW} tokens by document"
    """What settings do not say, and what tells results apart that were measured otherwise."""

    out: Path = Path("runs/replacement")
    """Folder for the one result of all dictionaries."""
    n_loss_tokens: Annotated[int, Within(1)] = 16_384
    """Tokens of held-out text, in windows that every document gives in turn."""
    alone: bool = True
    """Also splice in each dictionary alone, one pass for each; of crosscoders each hook point."""


def finish(results: Sequence[EvaluationResult], config: ReplacementConfig) -> None:
    """Print the numbers that matter most."""
    from rich.console import Console

    del config
    values = {name: results[0].value(name) for name in SUITE.headline}
    Console().print("; ".join(f"{n} {v:.4f}" for n, v in values.items() if v is not None))


SUITE = Suite(
    name="replacement",
    summary="Splice a set of dictionaries into one pass of the model, such as a transcoder for "
    "each layer: what it costs, and what each leaves out.",
    Config=ReplacementConfig,
    measure=deferred(".replacement.measure", "measure_replacement"),
    definitions=definitions,
    headline=(
        "loss_clean",
        "loss_spliced",
        "loss_recovered_zero",
        "kl",
        "same_top_token",
        "error_share",
        "error_share_spliced",
        "error_effect_share",
        "logit_completeness",
    ),
    skyline={
        "loss_spliced": "loss_clean",
        "loss_recovered_zero": 1.0,
        "kl": 0.0,
        "same_top_token": 1.0,
        "error_share": 0.0,
        "error_share_spliced": 0.0,
        "error_effect_share": 0.0,
        "logit_completeness": 1.0,
    },
    folder=lambda config: config.out,
    finish=finish,
)
run_replacement = SUITE.run
"""Splice dictionaries in together: (folders, config) -> the one result in a list."""
