"""What every number of saelab means: one name, one unit and one sentence for each metric.

The sentences travel with the values into every result file and report, so a number is never read
without its definition. `{n_rows}` and the like are filled in by `define` with the facts of a run.
The arithmetic is in `metrics.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from saelab.formats.evaluation_result import Better, Definition

_PREDICTED = (
    "mean over the {n_loss_positions} predicted positions (every token but the first of each "
    "context)"
)
_INTERVALS = "\n".join(
    f"{metric}_{end} | {unit} | {end.capitalize()} end of the 95 % interval of {metric}: a "
    "percentile of 1,000 resamples of the {n_loss_documents} documents; null for one document."
    for metric, unit in (
        ("loss_recovered_zero", "1"),
        ("loss_recovered_mean", "1"),
        ("kl", "nats per token"),
    )
    for end in ("low", "high")
)
_ROWS = "over the {n_rows} evaluated rows"
_KEPT = "excluded rows keep their original activation in every condition"
_QUANTILES = "\n".join(
    f"l0_q{percent:02d} | latents per row | {percent} % quantile of L0: the smallest value that at "
    f"least {percent} % of the {{n_rows}} evaluated rows do not exceed."
    for percent in (5, 25, 50, 75, 95)
)

TRAINING_GROUP = "Rows it was trained on"
"""Group of the numbers that only dictionaries have whose training cache is at hand."""

# A line at the margin begins a heading or a metric: name | unit | definition.
_TABLE = f"""
[Reconstruction]
fvu | 1 | Fraction of variance unexplained: sum of |x - reconstruction|^2 divided by the sum of
    |x - mean|^2, both {_ROWS}, pooled over dimensions; mean is the
    per-dimension mean of the same rows.
explained_variance | 1 | 1 - FVU: variance explained against the mean of the evaluated rows (not
    against zero, not a mean of per-token ratios).
cosine_similarity | 1 | Mean {_ROWS} of the cosine between x and its reconstruction; a row where
    either is the zero vector counts as 0.
l2_ratio | 1 | Mean over the evaluated rows with |x| > 0 of |reconstruction| / |x| (a mean of
    ratios); below 1 means shrinkage.
l2_ratio_of_means | 1 | Mean of |reconstruction| divided by the mean of |x|, both {_ROWS} (a ratio
    of means).
relative_reconstruction_bias | 1 | Mean of |reconstruction|^2 divided by the mean of
    <x, reconstruction>, both {_ROWS}; 1 is unbiased, below 1 means shrinkage.
mean_squared_error | squared activation units per row | Mean {_ROWS} of |x - reconstruction|^2,
    summed over dimensions.
[{TRAINING_GROUP}]
fvu_train | 1 | FVU on {{n_training_rows}} rows of the cache it was trained on, at even distances,
    against the mean of these rows.
fvu_gap | 1 | FVU on held-out text less FVU on the rows trained on: what is learnt of these rows
    alone, and what sets the two texts apart.
[Sparsity]
l0_mean | latents per row | Mean {_ROWS} of L0, the number of positive codes of a row.
l0_std | latents per row | Population standard deviation of L0 {_ROWS}.
{_QUANTILES}
dead_fraction | 1 | Fraction of the latents without a positive code on any of the {{n_rows}}
    evaluated rows (tokens); it falls as more text is evaluated.
dense_fraction | 1 | Fraction of the latents with density above 0.1; density is the fraction of the
    {{n_rows}} evaluated rows on which a latent's code is positive.
[Effect on the model]
loss_clean | nats per token | Next-token cross-entropy of the untouched model, {_PREDICTED}.
loss_spliced | nats per token | Next-token cross-entropy with the reconstruction in place of the
    activation, {_PREDICTED}; {_KEPT}.
loss_zero_ablation | nats per token | Next-token cross-entropy with the activation replaced by zero,
    {_PREDICTED}; {_KEPT}.
loss_mean_ablation | nats per token | Next-token cross-entropy with the activation replaced by
    {{mean_source}}, {_PREDICTED}; {_KEPT}.
loss_recovered_zero | 1 | (loss_zero_ablation - loss_spliced) / (loss_zero_ablation - loss_clean): 1
    is as good as the untouched model, 0 as bad as zero ablation; null where the two agree to 1e-6
    nats.
loss_recovered_mean | 1 | (loss_mean_ablation - loss_spliced) / (loss_mean_ablation - loss_clean): 1
    is as good as the untouched model, 0 as bad as mean ablation; null where the two agree to 1e-6
    nats.
kl | nats per token | KL(clean || spliced): Kullback-Leibler divergence from the next-token
    distribution of the untouched model to that of the spliced model, {_PREDICTED}.
{_INTERVALS}
[What was counted]
n_contexts | contexts | Contexts of held-out text whose activations were evaluated.
n_tokens | tokens | Tokens in those contexts; each gives one activation row.
n_rows | rows | Rows evaluated: n_tokens less the excluded rows below.
n_excluded_bos | rows | Rows excluded because they are the first of a context or a BOS token.
n_excluded_separator | rows | Rows excluded because their token is a separator or special.
n_excluded_position | rows | Rows excluded because of their position in the context.
n_excluded_norm | rows | Rows excluded because their norm is above the ceiling recorded with the
    dictionary ({{norm_ceiling}}).
n_loss_documents | documents | Held-out documents on which losses and KL were measured.
n_loss_contexts | contexts | Windows of these documents, each a context of its own: one of every
    document, then a second of every one, until there are as many tokens as were asked for.
n_loss_positions | tokens | Predicted positions over which losses and KL are averaged.
n_loss_rows_replaced | rows | Activation rows replaced in the spliced and ablated runs.
n_loss_rows_kept | rows | Activation rows that kept their original value in the spliced and ablated
    runs: {{loss_excluded}}.
"""

MODES_GROUP = "Inference modes"
"""Group of the numbers that only dictionaries trained with `gradient_topk` have."""
_MODES = {
    "plain": "Plain top-k, the saved gate (no gradient, no labels)",
    "threshold": "Threshold mode (no gradient, no labels: a latent is active where its "
    "pre-activation exceeds {mode_threshold})",
    "gradient_assisted": "Gradient-assisted mode (uses labels: the k latents with the largest "
    "z (1 + beta |g W_dec|) are active, g the scaled gradient of the loss, beta {mode_beta})",
    "gradient_shuffled": "Control of the gradient-assisted mode, not a mode to use (the same rule, "
    "but each row takes the gradient of a random row of the context before its own, in the first "
    "context of the last)",
}
_MODE_WARNINGS = {
    "gradient_assisted": " The gradient-assisted mode reads the true next tokens through the "
    "gradient, so this is no measure of a dictionary one could use without labels.",
    "gradient_shuffled": " What remains here of a difference from plain top-k is not due to the "
    "row's own next tokens.",
}
_MODE_ROWS = "over the {n_mode_rows} evaluated rows of the contexts on which losses are measured"
_MODE_TABLE = f"""
l0_mean | latents per row | mean L0, the number of positive codes, {_MODE_ROWS}.
fvu | 1 | sum of |x - reconstruction|^2 divided by the sum of |x - mean|^2 {_MODE_ROWS}.
loss_spliced | nats per token | next-token cross-entropy with the mode's reconstruction in place of
    the activation, {_PREDICTED}; {_KEPT}.
loss_recovered_zero | 1 | (loss_zero_ablation - loss_spliced) / (loss_zero_ablation - loss_clean),
    with the mode's loss_spliced; null where ablation costs less than 1e-6 nats.
loss_recovered_mean | 1 | (loss_mean_ablation - loss_spliced) / (loss_mean_ablation - loss_clean),
    with the mode's loss_spliced; null where ablation costs less than 1e-6 nats.
kl | nats per token | KL(clean || spliced) with the mode's reconstruction in place of the
    activation, {_PREDICTED}.
"""
INFERENCE_MODES = tuple(_MODES)
"""The modes of a dictionary trained with `gradient_topk`, as metrics name them; the last is a
control."""

_BETTER: dict[str, Better] = {
    **dict.fromkeys(
        ("fvu", "fvu_train", "mean_squared_error", "dead_fraction", "loss_spliced", "kl"), "lower"
    ),
    **dict.fromkeys(("explained_variance", "cosine_similarity"), "higher"),
    **dict.fromkeys(("loss_recovered_zero", "loss_recovered_mean"), "higher"),
}
"""Where a direction is the better one; a mode's number goes as the number itself does."""


def _better(name: str) -> Better:
    for mode in _MODES:
        name = name.removeprefix(f"mode_{mode}_")
    return _BETTER.get(name, "neither")


def _entries(table: str) -> Iterator[list[str]]:
    """Heading, name, unit and definition of each metric of a table."""
    heading = ""
    for entry in re.split(r"\n(?! )", table.strip()):
        if entry.startswith("["):
            heading = entry.strip("[]")
        else:
            yield [heading, *" ".join(entry.split()).split(" | ", 2)]


_ENTRIES = [
    *_entries(_TABLE),
    *(
        [
            MODES_GROUP,
            f"mode_{mode}_{name}",
            unit,
            f"{what}: {text}{_MODE_WARNINGS.get(mode, '')}",
        ]
        for mode, what in _MODES.items()
        for _, name, unit, text in _entries(_MODE_TABLE)
    ),
    [
        MODES_GROUP,
        "mode_n_rows",
        "rows",
        "Rows on which the modes' L0 and FVU were measured; the same are replaced in the spliced "
        "runs.",
    ],
]
METRICS = {
    name: Definition(name=name, group=group, unit=unit, text=text, better=_better(name))
    for group, name, unit, text in _ENTRIES
}


class _Facts(dict[str, str]):
    """Facts to fill in; one that is not known stays a name to be looked up in the result."""

    def __missing__(self, key: str) -> str:
        return key


def define(name: str, **facts: object) -> str:
    """The definition of a metric with the facts of a run filled in; unknown facts stay as names.

    Raises:
        KeyError: no metric has this name.
    """
    texts = {
        key: f"{fact:,}" if isinstance(fact, int) else str(fact) for key, fact in facts.items()
    }
    return METRICS[name].text.format_map(_Facts(texts))
