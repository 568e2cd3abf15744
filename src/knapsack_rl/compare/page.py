"""The page of a comparison: one file that needs no network; its charts are drawn by its own small script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from knapsack_rl import __version__
from knapsack_rl.compare.cells import BASELINE
from knapsack_rl.compare.match import Contest
from knapsack_rl.compare.payload import payload
from knapsack_rl.compare.ranking import ALL, Estimate, Standing, is_told, rank
from knapsack_rl.compare.results import Results
from knapsack_rl.compare.workers import News
from knapsack_rl.report.html import fill, write_page


def write_comparison(results: Results, match: Contest, failures: Sequence[News], out: Path) -> Path:
    """Write the page, all or nothing; whatever it shows is escaped.

    Returns:
        ``out``.
    """
    standings = rank(results)
    page = fill(
        Path(__file__).with_name("page.html.j2"),
        data=payload(results),
        verdict=verdict(standings, match),
        standings=standings,
        names=(ALL, *results.presets),
        baseline=BASELINE,
        shown=shown,
        costs=_costs(results, standings),
        failures=failures,
        match=match,
        settings=match.settings(),
        version=__version__,
    )
    return write_page(page, out)


def verdict(standings: Sequence[Standing], match: Contest) -> str:
    """Who is ahead over all presets, in one sentence or two."""
    what, measure = f"After the same {match.budget}", match.words.measure
    finished = [standing for standing in standings if standing.rule != BASELINE and standing.complete]
    rivals = [standing for standing in finished if not is_told(standing.rule)]
    if not rivals:
        return "Nothing to compare with uniform finished."
    best = rivals[0]
    ahead = sum(standing.ahead[ALL].sign > 0 for standing in rivals)
    behind = sum(standing.ahead[ALL].sign < 0 for standing in rivals)
    if len(match.seeds) < 2:
        return f"{what}, {best.rule} ends at the highest {measure}; one seed says nothing about how sure that is."
    words = f"{what}, {ahead} of {len(rivals)} rules end ahead of uniform and {behind} behind it, by {measure}"
    words = f"{words}. Furthest ahead is {best.rule}: {shown(best.ahead[ALL])} over all {match.words.preset}s."
    return (
        words
        if len(finished) == len(rivals)
        else f"{words} Oracles, who are told the true rates, take no part in this."
    )


def shown(figure: Estimate, signed: bool = True) -> str:
    """``+0.0412 ±0.0031``; a dash for what is not known."""
    if np.isnan(figure.mean):
        return "-"
    mean = f"{figure.mean:+.4f}" if signed else f"{figure.mean:.4f}"
    return mean if np.isnan(figure.half) else f"{mean} ±{figure.half:.4f}"


def _millions(tokens: float) -> str:
    return f"{tokens / 1e6:,.0f} M" if tokens >= 9.995e6 else f"{tokens / 1e6:.2f} M"


def _costs(results: Results, standings: Sequence[Standing]) -> list[dict[str, str]]:
    """What each rule spent, on average over presets and seeds, and how soon it stood where uniform ended."""
    found = []
    for standing in standings:
        r = results.rules.index(standing.rule)
        spent = {name: float(np.nanmean(results.end(name)[r])) for name in ("steps", "rollouts", "tokens", "rounds")}
        shares = results.share_to_uniform[r][~np.isnan(results.end(results.measure)[r])]
        reached = shares[~np.isnan(shares)]
        found.append({
            "rule": standing.rule,
            "steps": f"{spent['steps']:,.0f}",
            "rollouts": f"{spent['rollouts']:,.0f}",
            "tokens": _millions(spent['tokens']),
            "rounds/step": f"{spent['rounds'] / spent['steps']:.2f}",
            "ms/step in the rule": f"{1000 * float(np.nanmean(results.end('seconds')[r])) / spent['steps']:.1f}",
            "budget to uniform's end": f"{100 * reached.mean():.0f} %" if reached.size else "-",
            "runs there": f"{reached.size} of {shares.size}",
        })  # fmt: skip
    return found
