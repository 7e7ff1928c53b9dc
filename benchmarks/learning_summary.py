"""From finished runs to figures, table and plot; no run is made here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Curve = list[list[float]]
"""Round, mean share of centralised training's improvement in percent, mean bytes up, mean bytes down."""

SHARE = 97.0
"""Percent of centralised training's improvement over constant velocity, on validation drives."""

WINDOW = 5
"""Points of a curve over which the share must be reached."""


def references(rows: Sequence[Row]) -> dict[int, tuple[float, float]]:
    """By split, the validation ADE of constant velocity and of centralised training."""
    return {row["seed"]: (row["start"], row["validation"]) for row in rows}


def mean_curve(rows: Sequence[Row], known: Mapping[int, tuple[float, float]]) -> Curve:
    """The mean over the splits of what each of the runs gained, round by round."""
    curve = []
    for points in zip(*(row["curve"] for row in rows), strict=True):
        shares = []
        for row, point in zip(rows, points, strict=True):
            start, goal = known[row["seed"]]
            shares.append(100 * (start - point[1]) / (start - goal))
        up, down = (statistics.mean(point[i] for point in points) for i in (2, 3))
        curve.append([points[0][0], statistics.mean(shares), up, down])
    return curve


def peak(curve: Curve) -> float:
    """The largest mean share."""
    return max(point[1] for point in curve)


def steady(curve: Curve) -> float:
    """The mean share over the last third of the rounds: what a setting is chosen by, so that no lucky round counts."""
    late = curve[-max(1, len(curve) // 3) :]
    return statistics.mean(point[1] for point in late)


def reached(curve: Curve, window: int = WINDOW) -> dict[str, Any]:
    """Where the mean share over the last `window` points first is `SHARE`: single rounds are noisy, up to 4 points.

    A curve that never gets there tells its end, as a lower bound.
    """
    for at in range(window, len(curve) + 1):
        if statistics.mean(point[1] for point in curve[at - window : at]) >= SHARE:
            number, _, up, down = curve[at - 1]
            return {"round": number, "up": up, "down": down, "is_bound": False}
    number, _, up, down = curve[-1]
    return {"round": number, "up": up, "down": down, "is_bound": True}


def figures(curves: Mapping[str, Curve], runs: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """The published keys, and the ratios at the first touch of the target by a single round beside them."""
    return {
        **ratios({name: reached(curve) for name, curve in curves.items()}),
        "ade_gap_pct": gap(runs["ours"], runs["fedavg"]),
        "ade_gap_last_pct": gap(runs["ours"], runs["fedavg"], key="test_last"),
        "ade_gap_chosen_pct": gap(runs["ours"], runs["fedavg"], key="test_chosen"),
        "first_touch": ratios({name: reached(curve, window=1) for name, curve in curves.items()}),
    }


def ratios(at: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Bytes of the others to where they reach the target, in ours; None when ours never do."""
    ours, both = at["ours"], at["ours"]["up"] + at["ours"]["down"]
    dense = at["fedavg"]

    def ratio(amount: float, own: float) -> float | None:
        return None if ours["is_bound"] else round(amount / own, 1)

    return {
        "x_fedsgd_97": ratio(at["fedsgd"]["up"], ours["up"]),
        "x_fedsgd_97_is_lower_bound": at["fedsgd"]["is_bound"],
        "x_fedavg_97": ratio(dense["up"], ours["up"]),
        "x_fedavg_97_is_lower_bound": dense["is_bound"],
        "x_both_97": ratio(dense["up"] + dense["down"], both),
        "reached": at,
    }


def gap(ours: Sequence[Row], dense: Sequence[Row], *, key: str = "test_equal") -> float:
    """By how many percent the mean test ADE of one is above that of the other, split by split; after equal rounds."""
    base = {row["seed"]: row[key] for row in dense}
    return round(statistics.mean(100 * (row[key] / base[row["seed"]] - 1) for row in ours), 2)


def table(result: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    columns = (
        "method",
        "learning rate, server rate",
        "bytes a round up, down",
        "best share",
        "rounds to 97 %",
        "bytes up to there",
        "up and down",
        "test ADE (m)",
    )
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for name, one in result["methods"].items():
        at = one["reached"]
        mark = "> " if at["is_bound"] else ""
        lines.append(
            f"| {name} | {one['learning_rate']:g}, {one['server_rate']:g} | {_bytes(one['up_a_round'])},"
            f" {_bytes(one['down_a_round'])} | {one['best_share']:.1f} % | {mark}{at['round']:.0f}"
            f" | {mark}{_bytes(at['up'])} | {mark}{_bytes(at['up'] + at['down'])} | {one['test_ade']:.3f} |"
        )
    lines += ["", "| at 10 % participation | server rate | bytes a round up | test ADE (m) | over dense |"]
    lines.append("|" + " --- |" * 5)
    for name, one in result["rare"].items():
        lines.append(
            f"| {name} | {one['server_rate']:g} | {_bytes(one['up_a_round'])} | {one['test_ade']:.3f}"
            f" | {one['gap_pct']:+.1f} % ({', '.join(f'{each:+.1f}' for each in one['gap_pct_by_seed'])}) |"
        )
    return "\n".join(lines)


def plot(curves: Mapping[str, Curve], file: Path) -> None:
    """Draw the mean share against the bytes of one vehicle: up, and both ways."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panes = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True, layout="constrained")
    for pane, title in zip(panes, ("uplink", "uplink and downlink"), strict=True):
        for name, curve in curves.items():
            sizes = [point[2] + (point[3] if pane is panes[1] else 0) for point in curve]
            pane.plot([size / 1e3 for size in sizes], [point[1] for point in curve], label=name)
        pane.axhline(SHARE, color="grey", linestyle=":", linewidth=1)
        pane.set(xscale="log", xlabel=f"kB of one vehicle, {title}", ylim=(0, 105))
        pane.grid(visible=True, alpha=0.3)
    panes[0].set_ylabel("share of centralised training's improvement\nover constant velocity, validation (%)")
    panes[0].legend(fontsize="small")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _bytes(number: float) -> str:
    if number < 10_000:
        return f"{number:,.0f} B"
    return f"{number / 1e3:,.0f} kB" if number < 1e7 else f"{number / 1e6:,.1f} MB"
