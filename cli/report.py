"""The demo's report: one self-contained HTML page with its plots inside, no network needed to read it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fedfleet.cli.claims import Claim, Outcome
from fedfleet.cli.page import COLOURS, GREY, document, escape, svg, tiles

__all__ = ["write_html"]

_REASON_COLOURS = {"target": "#2f8a57", "contributors": "#2f8a57", "deadline": "#c2571a"}


def write_html(path: Path, outcome: Outcome, claims: Sequence[Claim]) -> None:
    """Write the page for an outcome and its claims; pictures are SVG inside the page."""
    plots = "".join(
        svg(partial(draw, outcome=outcome))
        for draw in (_draw_learning, _draw_regions, _draw_bytes, _draw_timeline)
    )
    versions = ", ".join(f"{name} {version}" for name, version in sorted(outcome.versions.items()))
    body = (
        f"<h1>fedfleet demo: {escape(outcome.task)}</h1>"
        f"<p>{outcome.vehicles} vehicles in {len(outcome.scores)} regions learned together over MQTT. "
        "No recording left its vehicle.</p>"
        f'{tiles(_figures(outcome))}<div class="plots">{plots}</div>'
        f"<h2>What was claimed, and the evidence</h2>{_claims_table(claims)}"
        f"<h2>Regions, on test drives that no one trained on</h2>{_regions_table(outcome)}"
        f"<h2>Rounds</h2>{_rounds_table(outcome)}"
        f"<footer>{escape(versions)}</footer>"
    )
    path.write_text(document("fedfleet demo", body), encoding="utf-8")


def _figures(outcome: Outcome) -> list[tuple[str, str]]:
    return [
        ("versions published", f"{outcome.rounds_published} in {outcome.rounds_run} rounds"),
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
        f"<td>{escape(claim.text)}</td><td>{escape(claim.evidence)}</td></tr>"
        for claim in claims
    )
    return f"<table>{rows}</table>"


def _regions_table(outcome: Outcome) -> str:
    head = f"<tr><th>region<th>{escape(outcome.metric)}, federated<th>trivial baseline<th>gain (+ is better)</tr>"
    sign, unit = (1 if outcome.lower_is_better else -1), escape(outcome.unit)
    rows = "".join(
        f"<tr><td>{escape(region)}<td>{score:.3f} {unit}<td>{base:.3f} {unit}"
        f"<td>{sign * (base - score) / abs(base) * 100 if base else 0:+.1f} %</tr>"
        for region, score in sorted(outcome.scores.items())
        for base in (outcome.baseline[region],)
    )
    return f"<table>{head}{rows}</table>"


def _rounds_table(outcome: Outcome) -> str:
    head = "<tr><th>round<th>region<th>state<th>closed by<th>updates<th>open for</tr>"
    rows = "".join(
        f"<tr><td>{row['round']}<td>{escape(row['region'])}<td>{escape(row['state'])}"
        f"<td>{escape(row['reason'])}"
        f"<td>{len(row['contributors'])}<td>{row['seconds']:.1f} s</tr>"
        for row in outcome.rounds
    )
    return f"<table>{head}{rows}</table>"


def _draw_learning(axes: Any, outcome: Outcome) -> None:  # noqa: ANN401 - matplotlib's axes
    for colour, region in zip(COLOURS * 8, sorted(outcome.scores), strict=False):
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
        color=GREY,
        label="trivial baseline",
    )
    axes.bar(
        [x + 0.2 for x in places],
        [outcome.scores[n] for n in names],
        0.4,
        color=COLOURS[0],
        label="federated",
    )
    axes.set_xticks(list(places), names, fontsize=8)
    axes.set(title=f"Test {outcome.metric} by region", ylabel=outcome.unit)
    axes.legend(frameon=False, fontsize=8)


def _draw_bytes(axes: Any, outcome: Outcome) -> None:  # noqa: ANN401 - matplotlib's axes
    values = [outcome.dense_bytes_up / 1e6, outcome.bytes_up / 1e6]
    axes.barh(["dense float32", "sent"], values, color=[GREY, COLOURS[2]])
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
