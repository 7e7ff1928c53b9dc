"""The demo's report: one self-contained HTML page with its plots inside, no network needed to read it."""

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedfleet.cli.claims import Claim, Outcome

__all__ = ["write_html"]

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#1b2430;background:#fff}
h1{font-size:1.7rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2rem}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin:1.2rem 0}
.tile{border:1px solid #d6dde5;border-radius:.5rem;padding:.7rem 1rem;min-width:9rem}
.tile b{display:block;font-size:1.5rem}.tile span{color:#5b6775;font-size:.85rem}
table{border-collapse:collapse;width:100%}td,th{padding:.35rem .6rem;border-bottom:1px solid #e4e9ef;text-align:left}
.yes{color:#0a7a3d;font-weight:600}.no{color:#b3261e;font-weight:600}.plots{display:flex;flex-wrap:wrap;gap:1rem}
svg{max-width:100%;height:auto}footer{margin-top:2rem;color:#5b6775;font-size:.85rem}
"""
_COLOURS = ("#2563a8", "#c2571a", "#2f8a57", "#8b4fa3", "#8a6d1f", "#41707a", "#a83255", "#555f6b")
_REASON_COLOURS = {"target": "#2f8a57", "contributors": "#2f8a57", "deadline": "#c2571a"}


def write_html(path: Path, outcome: Outcome, claims: Sequence[Claim]) -> None:
    """Write the page for an outcome and its claims; pictures are SVG inside the page."""
    plots = "".join(_plots(outcome))
    tiles = "".join(
        f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
        for name, value in _tiles(outcome)
    )
    versions = ", ".join(f"{name} {version}" for name, version in sorted(outcome.versions.items()))
    path.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>fedfleet demo</title><style>{_STYLE}</style>"
        f"<h1>fedfleet demo: {html.escape(outcome.task)}</h1>"
        f"<p>{outcome.vehicles} vehicles in {len(outcome.scores)} regions learned together over MQTT. "
        "No recording left its vehicle.</p>"
        f'<div class="tiles">{tiles}</div><div class="plots">{plots}</div>'
        f"<h2>What was claimed, and the evidence</h2>{_claims_table(claims)}"
        f"<h2>Regions, on test drives that no one trained on</h2>{_regions_table(outcome)}"
        f"<h2>Rounds</h2>{_rounds_table(outcome)}"
        f"<footer>{html.escape(versions)}</footer></html>",
        encoding="utf-8",
    )


def _tiles(outcome: Outcome) -> list[tuple[str, str]]:
    return [
        ("rounds published", str(outcome.rounds_published)),
        ("smaller uploads than float32", f"{outcome.ratio:.0f} ×"),
        ("uploaded", f"{outcome.bytes_up / 1000:.0f} kB"),
        ("downloaded", f"{outcome.bytes_down / 1000:.0f} kB"),
        ("inference p50 / p99", f"{outcome.p50_ms:.1f} / {outcome.p99_ms:.1f} ms"),
        (f"frames missed in {outcome.swaps} swaps", f"{outcome.missed_in_swap}"),
        ("seconds", f"{outcome.seconds:.0f}"),
    ]


def _claims_table(claims: Sequence[Claim]) -> str:
    rows = "".join(
        f'<tr><td class="{"yes" if claim.is_true else "no"}">{"true" if claim.is_true else "not true"}</td>'
        f"<td>{html.escape(claim.text)}</td><td>{html.escape(claim.evidence)}</td></tr>"
        for claim in claims
    )
    return f"<table>{rows}</table>"


def _regions_table(outcome: Outcome) -> str:
    head = f"<tr><th>region<th>{html.escape(outcome.metric)}, federated<th>trivial baseline<th>better by</tr>"
    sign, unit = (1 if outcome.lower_is_better else -1), html.escape(outcome.unit)
    rows = "".join(
        f"<tr><td>{html.escape(region)}<td>{score:.3f} {unit}<td>{base:.3f} {unit}"
        f"<td>{sign * (base - score) / base * 100 if base else 0:.1f} %</tr>"
        for region, score in sorted(outcome.scores.items())
        for base in (outcome.baseline[region],)
    )
    return f"<table>{head}{rows}</table>"


def _rounds_table(outcome: Outcome) -> str:
    head = "<tr><th>round<th>region<th>state<th>closed by<th>updates<th>open for</tr>"
    rows = "".join(
        f"<tr><td>{row['round']}<td>{html.escape(row['region'])}<td>{html.escape(row['state'])}"
        f"<td>{html.escape(row['reason'])}"
        f"<td>{len(row['contributors'])}<td>{row['seconds']:.1f} s</tr>"
        for row in outcome.rounds
    )
    return f"<table>{head}{rows}</table>"


def _plots(outcome: Outcome) -> list[str]:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "fedfleet"}
    )
    pictures = []
    for draw in (_draw_learning, _draw_regions, _draw_bytes, _draw_timeline):
        figure, axes = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
        draw(axes, outcome)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        plt.close(figure)
        text = buffer.getvalue()
        pictures.append(text[text.index("<svg") :])
    return pictures


def _draw_learning(axes: Any, outcome: Outcome) -> None:  # noqa: ANN401 - matplotlib's axes
    for colour, region in zip(_COLOURS * 8, sorted(outcome.scores), strict=False):
        points = [
            (entry["version"], entry["scores"][region])
            for entry in outcome.history
            if region in entry["scores"]
        ]
        axes.plot(
            [x for x, _ in points], [y for _, y in points], marker="o", ms=3, color=colour, label=region
        )
        if points:
            axes.axhline(points[0][1], color=colour, lw=0.8, ls=":")
    axes.set(
        title=f"Validation {outcome.metric} (dotted: trivial baseline)",
        xlabel="published version",
        ylabel=outcome.unit,
    )
    axes.legend(frameon=False, fontsize=8)


def _draw_regions(axes: Any, outcome: Outcome) -> None:  # noqa: ANN401 - matplotlib's axes
    names = sorted(outcome.scores)
    places = range(len(names))
    axes.bar(
        [x - 0.2 for x in places],
        [outcome.baseline[n] for n in names],
        0.4,
        color="#b8c2cc",
        label="trivial baseline",
    )
    axes.bar(
        [x + 0.2 for x in places],
        [outcome.scores[n] for n in names],
        0.4,
        color=_COLOURS[0],
        label="federated",
    )
    axes.set_xticks(list(places), names, fontsize=8)
    axes.set(title=f"Test {outcome.metric} by region", ylabel=outcome.unit)
    axes.legend(frameon=False, fontsize=8)


def _draw_bytes(axes: Any, outcome: Outcome) -> None:  # noqa: ANN401 - matplotlib's axes
    values = [outcome.dense_bytes_up / 1e6, outcome.bytes_up / 1e6]
    axes.barh(["dense float32", "sent"], values, color=["#b8c2cc", _COLOURS[2]])
    for place, value in enumerate(values):
        axes.text(value, place, f" {value:.2f} MB", va="center")
    axes.set_xlim(0, max(values) * 1.25 or 1)
    axes.set(title=f"Uploads of {outcome.updates} updates: {outcome.ratio:.0f} × smaller", xlabel="megabytes")


def _draw_timeline(axes: Any, outcome: Outcome) -> None:  # noqa: ANN401 - matplotlib's axes
    regions = sorted({row["region"] for row in outcome.rounds})
    begin = min((row["opened_at_s"] for row in outcome.rounds), default=0.0)
    for row in outcome.rounds:
        colour = _REASON_COLOURS.get(row["reason"], "#8a939e")
        axes.barh(
            regions.index(row["region"]),
            row["seconds"],
            left=row["opened_at_s"] - begin,
            color=colour,
            edgecolor="white",
        )
    axes.set_yticks(range(len(regions)), regions, fontsize=8)
    axes.set(title="Rounds (orange: closed at the deadline)", xlabel="seconds")
