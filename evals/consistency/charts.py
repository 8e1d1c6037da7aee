"""The charts and tables about the runs of a group, and about groups against one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from jaxtyping import Float
from torch import Tensor

from saelab.dictionary import SavedDictionary
from saelab.formats.chart import Axis, Chart, ReferenceLine, Series
from saelab.formats.evaluation_result import IN_SHORT, Table

from ..curves import COSINES, fractions_for, mean_above, mean_at_least, reached_by_half
from ..display import evenly_chosen, rounded
from .scores import Scores

RANKINGS = {
    "max_activation": ("max activation", "max activation (activation units, log)"),
    "z_score": ("Z-score", "Z-score: (max − mean) / std of the pre-activation (log)"),
    "density": ("density", "density (fraction of rows, log)"),
}
SHARE = Axis(title="share of latents", low=-0.02, high=1.02)
COSINE = Axis(title="cosine", low=0, high=1)
MOST_POINTS = 1024


def group_charts(
    members: Mapping[str, Scores], floors: Sequence[Float[Tensor, " _"]], threshold: float
) -> list[Chart]:
    """The charts about the runs of one group against one another.

    `members` are the scores of each run against the others, `floors` the MCS of random directions
    against the same.
    """
    scores = [*members.values()]
    charts = [_distribution(scores, floors, threshold)]
    if rankings := list(scores[0].rankings):
        charts.insert(0, _share_by_rank(scores, rankings, threshold))
    return charts + [_scatter(members, ranking) for ranking in rankings]


def _share_by_rank(scores: Sequence[Scores], rankings: Sequence[str], threshold: float) -> Chart:
    """Share of latents found again, among the top of each ranking."""
    counts = [len(run.latent) for run in scores]
    fractions: list[Any] = fractions_for(max(counts))
    series, stated = [], []
    for style, ranking in enumerate(rankings):
        name = RANKINGS[ranking][0]
        orders = [run.order(ranking) for run in scores]
        for kind, label in (("mcs", name), ("one_to_one", f"{name}, one to one")):
            values = [getattr(run, kind) for run in scores]
            shares = mean_above(values, orders, threshold, fractions)
            dashed = kind == "one_to_one"
            series.append(Series(name=label, x=fractions, y=shares, style=style, dashed=dashed))
            if not dashed:
                stated.append(f"{name} {shares[0]:.2f} to {shares[-1]:.2f}")
    low, high = min(counts), max(counts)
    counted = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return Chart(
        name="share_by_rank",
        title="Are the most active latents found again?",
        caption="Among the top fraction of the alive latents by each ranking: the share with a "
        f"cosine above {threshold:g} to a latent of the other runs (largest cosine, "
        "averaged over them; solid), and to the one-to-one partner there (dashed). Mean over "
        f"{len(scores)} runs of {counted} alive latents.",
        summary=f"Curves of the share of latents with MCS above {threshold:g} against the "
        f"top fraction, from the smallest to all: {'; '.join(stated)}.",
        x=Axis(title="top fraction of the alive latents (log)", log=True),
        y=SHARE,
        series=tuple(series),
    )


def _distribution(
    scores: Sequence[Scores], floors: Sequence[Float[Tensor, " _"]], threshold: float
) -> Chart:
    """How many latents have at least a given cosine."""
    curves = {
        "MCS": mean_at_least([run.mcs for run in scores]),
        "one to one": mean_at_least([run.one_to_one for run in scores]),
        "random directions": mean_at_least(floors),
    }
    half = ", ".join(f"{reached_by_half(y):.2f} ({name})" for name, y in curves.items())
    return Chart(
        name="mcs_distribution",
        title="How like their counterparts latents are",
        caption="Share of the compared latents with at least this cosine: MCS (largest cosine with "
        "a latent of another run, averaged over the others), the cosine with the one-to-one "
        "partner, and the MCS of random unit directions against the same runs. Mean over "
        f"{len(scores)} runs; the vertical line is the threshold, {threshold:g}.",
        summary=f"Falling curves of the share of latents against cosine; half of them reach "
        f"{half}.",
        x=COSINE,
        y=SHARE,
        series=tuple(
            Series(name=name, x=[*COSINES], y=shares, dashed=name == "random directions")
            for name, shares in curves.items()
        ),
        lines=(ReferenceLine(value=threshold, label="threshold", axis="x"),),
    )


def _scatter(members: Mapping[str, Scores], ranking: str) -> Chart:
    """Each latent by its rank and its MCS; at even distances where a run has too many."""
    name, axis = RANKINGS[ranking]
    x: list[Any] = []
    mcs: list[Any] = []
    labels: list[str] = []
    for run, scores in members.items():
        ranked = scores.rankings[ranking]
        # A logarithmic axis cannot show zero or an undefined Z-score.
        positive = (ranked > 0).nonzero().flatten()
        shown = evenly_chosen(positive, MOST_POINTS // len(members))
        x += rounded(ranked[shown])
        mcs += rounded(scores.mcs[shown])
        labels += [f"latent {latent} of {run}" for latent in scores.latent[shown].tolist()]
    n_compared = sum(len(scores.latent) for scores in members.values())
    which = "all" if len(x) == n_compared else f"{len(x):,} evenly chosen"
    ordered = [value for _, value in sorted(zip(x, mcs, strict=True))]
    quarter = max(1, len(x) // 4)
    low, high = (fmean(part or [0.0]) for part in (ordered[:quarter], ordered[-quarter:]))
    return Chart(
        name=f"mcs_by_{ranking}",
        title=f"Consistency against {name}",
        caption=f"One point per latent ({which} of the {n_compared:,} compared latents of all "
        f"runs): {name} on the held-out rows, and MCS, the largest cosine with a latent of another "
        "run averaged over the other runs.",
        summary=f"Scatter of {len(x):,} latents: mean MCS {low:.2f} in the lowest quarter by "
        f"{name}, {high:.2f} in the highest.",
        x=Axis(title=axis, log=True),
        y=Axis(title="MCS (cosine)", low=min([0.0, *mcs]), high=1.02),
        series=(Series(name="latents", x=x, y=mcs, mark="dots", labels=labels),),
    )


def across_charts(
    groups: Sequence[str],
    mcs_mean: list[list[float | None]],
    group: str,
    against: Mapping[str, Sequence[Scores]],
    threshold: float,
) -> list[Chart]:
    """The matrix of all groups, and one group's latents against each group.

    `mcs_mean` is that of the row's latents in the column's dictionaries, `against` the scores of
    the members of `group` against each group alone, by its label.
    """
    known = [value for row in mcs_mean for value in row if value is not None]
    distribution: dict[str, list[Any]] = {
        label: mean_at_least([run.mcs for run in scores]) for label, scores in against.items()
    }
    half = "; ".join(f"{label}: {reached_by_half(y):.2f}" for label, y in distribution.items())
    charts = [
        Chart(
            name="across",
            title="Groups against one another",
            caption="Mean over the row's compared latents, and over pairs of dictionaries, of the "
            "largest cosine with a latent of the column's dictionary. On the diagonal: different "
            "runs of one group; empty where there is only one. Wider dictionaries are easier to be "
            "found in, so the matrix is not symmetric.",
            summary=f"Matrix of mean MCS between {len(groups)} groups, from {min(known):.2f} to "
            f"{max(known):.2f}.",
            x=Axis(title="group that is searched"),
            y=Axis(title="group whose latents are sought"),
            series=(
                Series(
                    name="mean MCS",
                    x=[f"#{number}" for number, _ in enumerate(groups, start=1)],
                    y=[f"{number}: {label}" for number, label in enumerate(groups, start=1)],
                    z=mcs_mean,
                    mark="heat map",
                ),
            ),
            colour="mean MCS (cosine)",
        ),
        Chart(
            name="distribution_across",
            title="How like the latents of the others",
            caption=f"Share of the compared latents of {group} whose largest cosine with a "
            "latent of the named dictionaries, averaged over those, is at least this.",
            summary=f"Falling curves of the share of latents against cosine; half reach, {half}.",
            x=COSINE,
            y=SHARE,
            series=_curves(COSINES, distribution),
        ),
    ]
    first = next(iter(against.values()))[0]
    if not first.rankings:
        return charts
    fractions = fractions_for(len(first.latent))
    shares: dict[str, list[Any]] = {
        label: mean_above(
            [run.mcs for run in scores],
            [run.order("max_activation") for run in scores],
            threshold,
            fractions,
        )
        for label, scores in against.items()
    }
    stated = "; ".join(f"{label}: {share[-1]:.2f}" for label, share in shares.items())
    return [
        *charts,
        Chart(
            name="share_across",
            title="Found again by whom, among the most active?",
            caption=f"Latents of {group}, the top fraction of the alive ones by max "
            "activation: share whose largest cosine with a latent of the named dictionaries "
            f"(averaged over those) is above {threshold:g}.",
            summary="Curves of the share of latents found again against the top fraction; of all "
            f"latents: {stated}.",
            x=Axis(title="top fraction of the alive latents by max activation (log)", log=True),
            y=SHARE,
            series=_curves(fractions, shares),
        ),
    ]


def _curves(x: Sequence[float], curves: Mapping[str, list[Any]]) -> tuple[Series, ...]:
    return tuple(Series(name=label, x=[*x], y=y) for label, y in curves.items())


def group_tables(
    members: Mapping[str, SavedDictionary], numbers: Mapping[str, Mapping[str, float | int]]
) -> list[Table]:
    """Every number of every run of a group, and what was compared; both by run."""
    alone = "This dictionary has no other run of its kind here; the charts compare it with the "
    names = next(iter(numbers.values()))
    return [
        Table(
            title="Every number of every run; definitions are at the end",
            columns=("number", *members),
            rows=tuple(
                (name.replace("_", " "), *(values[name] for values in numbers.values()))
                for name in names
            ),
            section=IN_SHORT,
            note=f"{alone}other groups." if len(members) == 1 else "",
        ),
        Table(
            title="What was compared",
            columns=("run", "dictionary", "content hash"),
            rows=tuple((run, saved.name, saved.content_hash) for run, saved in members.items()),
            section="Runs",
        ),
    ]


def across_table(
    groups: Sequence[str], matrices: Mapping[str, list[list[float | None]]], threshold: float
) -> Table:
    """The numbers between every two groups."""
    columns = {
        "mcs_mean": "mean MCS",
        "one_to_one_mean": "mean cosine, one to one",
        "mcs_share": f"share above {threshold:g}",
    }
    return Table(
        title="Latents of a group in the dictionaries of a group",
        columns=("groups", *columns.values()),
        rows=tuple(
            (f"{sought} in {searched}", *(matrices[name][row][column] for name in columns))
            for row, sought in enumerate(groups)
            for column, searched in enumerate(groups)
        ),
    )
