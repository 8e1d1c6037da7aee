"""The charts and tables of a "consistency" result, from plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saelab.formats.chart import Axis, Chart, ReferenceLine, Series
from saelab.formats.evaluation_result import Table

RANKINGS = {
    "max_activation": ("max activation", "max activation (activation units, log)"),
    "z_score": ("Z-score", "Z-score: (max − mean) / std of the pre-activation (log)"),
    "density": ("density", "density (fraction of rows, log)"),
}
SHARE = Axis(title="share of latents", low=-0.02, high=1.02)
COSINE = Axis(title="cosine", low=0, high=1)


def consistency_charts(data: Mapping[str, Any]) -> list[Chart]:
    """Every chart that there are data for.

    Args:
        data: by chart name, what it shows.
    """
    drawn = {
        "share_by_rank": share_by_rank,
        "mcs_distribution": mcs_distribution,
        **{f"mcs_by_{ranking}": scatter for ranking in RANKINGS},
        "across": across,
        "distribution_across": distribution_across,
        "share_across": share_across,
    }
    return [draw(data[name]) for name, draw in drawn.items() if name in data]


def share_by_rank(data: Mapping[str, Any]) -> Chart:
    """Share of latents found again, among the top of each ranking."""
    series, stated = [], []
    for index, (ranking, kinds) in enumerate(data["curves"].items()):
        name, mcs = RANKINGS[ranking][0], kinds["mcs"]
        for label, kind in ((name, "mcs"), (f"{name}, one to one", "one_to_one")):
            dashed = kind == "one_to_one"
            series.append(
                Series(name=label, x=data["fraction"], y=kinds[kind], style=index, dashed=dashed)
            )
        stated.append(f"{name} {mcs[0]:.2f} to {mcs[-1]:.2f}")
    low, high = min(data["n_compared"]), max(data["n_compared"])
    counted = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return Chart(
        name="share_by_rank",
        title="Are the most active latents found again?",
        caption=f"Among the top fraction of the alive latents by each ranking: the share with a "
        f"cosine above {data['threshold']:g} to a latent of the other runs (largest cosine, "
        "averaged over them; solid), and to the one-to-one partner there (dashed). Mean over "
        f"{data['n_runs']} runs of {counted} alive latents.",
        summary=f"Curves of the share of latents with MCS above {data['threshold']:g} against the "
        f"top fraction, from the smallest to all: {'; '.join(stated)}.",
        x=Axis(title="top fraction of the alive latents (log)", log=True),
        y=SHARE,
        series=tuple(series),
    )


def mcs_distribution(data: Mapping[str, Any]) -> Chart:
    """How many latents have at least a given cosine."""
    cosines, threshold = data["cosine"], data["threshold"]
    lines = {
        "MCS": data["mcs"],
        "one to one": data["one_to_one"],
        "random directions": data["random"],
    }
    half = ", ".join(f"{_at_half(cosines, y):.2f} ({label})" for label, y in lines.items())
    return Chart(
        name="mcs_distribution",
        title="How like their counterparts latents are",
        caption="Share of the compared latents with at least this cosine: MCS (largest cosine with "
        "a latent of another run, averaged over the others), the cosine with the one-to-one "
        "partner, and the MCS of random unit directions against the same runs. Mean over "
        f"{data['n_runs']} runs; the vertical line is the threshold, {threshold:g}.",
        summary=f"Falling curves of the share of latents against cosine; half of them reach "
        f"{half}.",
        x=COSINE,
        y=SHARE,
        series=tuple(
            Series(name=label, x=cosines, y=shares, dashed=label == "random directions")
            for label, shares in lines.items()
        ),
        lines=(ReferenceLine(value=threshold, label="threshold", axis="x"),),
    )


def scatter(data: Mapping[str, Any]) -> Chart:
    """Each latent by its rank and its MCS."""
    name, axis = RANKINGS[data["ranking"]]
    x, mcs = data["x"], data["mcs"]
    shown, compared = len(x), data["n_compared"]
    which = "all" if shown == compared else f"{shown:,} evenly chosen"
    ordered = [value for _, value in sorted(zip(x, mcs, strict=True))]
    quarter = max(1, shown // 4)
    low, high = _mean(ordered[:quarter]), _mean(ordered[-quarter:])
    labels = [
        f"latent {latent} of {run}" for latent, run in zip(data["latent"], data["run"], strict=True)
    ]
    return Chart(
        name=f"mcs_by_{data['ranking']}",
        title=f"Consistency against {name}",
        caption=f"One point per latent ({which} of the {compared:,} compared latents of all runs): "
        f"{name} on the held-out rows, and MCS, the largest cosine with a latent of another run "
        "averaged over the other runs.",
        summary=f"Scatter of {shown:,} latents: mean MCS {low:.2f} in the lowest quarter by "
        f"{name}, {high:.2f} in the highest.",
        x=Axis(title=axis, log=True),
        y=Axis(title="MCS (cosine)", low=min([0.0, *mcs]), high=1.02),
        series=(Series(name="latents", x=x, y=mcs, mark="dots", labels=labels),),
    )


def share_across(data: Mapping[str, Any]) -> Chart:
    """Share of a group's latents found by each group, among the most active."""
    stated = "; ".join(f"{other}: {shares[-1]:.2f}" for other, shares in data["curves"].items())
    return Chart(
        name="share_across",
        title="Found again by whom, among the most active?",
        caption=f"Latents of {data['group']}, the top fraction of the alive ones by max "
        "activation: share whose largest cosine with a latent of the named dictionaries (averaged "
        f"over those) is above {data['threshold']:g}.",
        summary="Curves of the share of latents found again against the top fraction; of all "
        f"latents: {stated}.",
        x=Axis(title="top fraction of the alive latents by max activation (log)", log=True),
        y=SHARE,
        series=_curves(data["fraction"], data["curves"]),
    )


def distribution_across(data: Mapping[str, Any]) -> Chart:
    """How like a group's latents are to those of each group."""
    cosines = data["cosine"]
    half = "; ".join(f"{other}: {_at_half(cosines, y):.2f}" for other, y in data["curves"].items())
    return Chart(
        name="distribution_across",
        title="How like the latents of the others",
        caption=f"Share of the compared latents of {data['group']} whose largest cosine with a "
        "latent of the named dictionaries, averaged over those, is at least this.",
        summary=f"Falling curves of the share of latents against cosine; half reach, {half}.",
        x=COSINE,
        y=SHARE,
        series=_curves(cosines, data["curves"]),
    )


def across(data: Mapping[str, Any]) -> Chart:
    """Mean MCS between every two groups."""
    groups, cells = data["groups"], data["mcs_mean"]
    numbers = [str(index + 1) for index, _ in enumerate(groups)]
    known = [value for row in cells for value in row if value is not None]
    labels = [f"{number}: {group}" for number, group in zip(numbers, groups, strict=True)]
    return Chart(
        name="across",
        title="Groups against one another",
        caption="Mean over the row's compared latents, and over pairs of dictionaries, of the "
        "largest cosine with a latent of the column's dictionary. On the diagonal: different runs "
        "of one group; empty where there is only one. Wider dictionaries are easier to be found "
        "in, so the matrix is not symmetric.",
        summary=f"Matrix of mean MCS between {len(groups)} groups, from {min(known):.2f} to "
        f"{max(known):.2f}.",
        x=Axis(title="group that is searched"),
        y=Axis(title="group whose latents are sought"),
        series=(
            Series(
                name="mean MCS", x=[f"#{n}" for n in numbers], y=[*labels], z=cells, mark="heat map"
            ),
        ),
        colour="mean MCS (cosine)",
    )


def consistency_tables(data: Mapping[str, Any]) -> list[Table]:
    """Every number of every run, what was compared, and the numbers between groups."""
    runs = data["runs"]
    tables = [
        Table(
            title="Every number of every run; definitions are at the end",
            columns=("number", *runs["names"]),
            rows=tuple(tuple(row) for row in runs["numbers"]),
            section="In short",
            note=""
            if len(runs["names"]) > 1
            else "This dictionary has no other run of its kind here; the charts compare it with "
            "the other groups.",
        ),
        Table(
            title="What was compared",
            columns=("run", "dictionary", "content hash"),
            rows=tuple(tuple(row) for row in runs["compared"]),
            section="Runs",
        ),
    ]
    if "across" not in data:
        return tables
    matrix = data["across"]
    columns = {
        "mcs_mean": "mean MCS",
        "one_to_one_mean": "mean cosine, one to one",
        "mcs_share": f"share above {matrix['threshold']:g}",
    }
    rows = [
        (f"{sought} in {searched}", *(matrix[name][row][column] for name in columns))
        for row, sought in enumerate(matrix["groups"])
        for column, searched in enumerate(matrix["groups"])
    ]
    title = "Latents of a group in the dictionaries of a group"
    return [*tables, Table(title=title, columns=("groups", *columns.values()), rows=tuple(rows))]


def _curves(x: Sequence[float], curves: Mapping[str, Sequence[float]]) -> tuple[Series, ...]:
    return tuple(Series(name=label, x=[*x], y=[*y]) for label, y in curves.items())


def _at_half(cosines: Sequence[float], shares: Sequence[float]) -> float:
    """The largest listed cosine that half of the latents reach."""
    reached = [cosine for cosine, share in zip(cosines, shares, strict=True) if share >= 0.5]
    return max(reached, default=0.0)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
