"""The tables of docs/arena.md: differences from uniform, ranks, losses of our rules, and costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from benchmarks.measure import machine
from knapsack_arena.compare.ranking import ALL, ORACLES, Estimate, RankedRule, estimate, rank
from knapsack_arena.compare.results import Results
from knapsack_arena.compare.trials import BASELINE, TrialSettings
from knapsack_rl.notation import FloatArray

OURS = ("beta", "calibrated", "calibrated-pool", "calibrated-pilot")
MEASURES = {
    "mean_p": "mean success rate",
    "held_out_p": "held-out prompts",
    "hard_quarter_p": "hardest quarter",
    "coverage": "ever solved",
    "area": "mean over the run",
}


def generated(found: Mapping[str, Results], settings: TrialSettings) -> str:
    """The generated part of the page, from the results at the same rollouts and at the same tokens."""
    rollouts, tokens = found["rollouts"], found["tokens"]
    parts = [
        f"Settings: {settings.prompts:,} prompts, {settings.groups} x {settings.average} rollouts a step,"
        f" {settings.steps} steps of uniform. {len(rollouts.seeds)} seeds at the same rollouts ({settings.rollouts:,}"
        f" of each rule), {len(tokens.seeds)} at the same tokens. {machine()}.",
        f"## At the same rollouts\n\n{verdict(rollouts)}",
        "![How far each rule ends ahead of uniform](images/arena-ranking.svg)",
        ranking(rollouts),
        f"## First and second by preset\n\n{winners(rollouts)}",
        f"By other measures, over all presets, with the ranks of our rules:\n\n{other_measures(rollouts)}",
        f"## Where our rules lose\n\n{losses(rollouts)}",
        "## Rollouts by success rate",
        "![Mean group size by true success rate](images/arena-allocation.svg)",
        f"## At the same tokens\n\n{verdict(tokens)}\n\n{ranking(tokens)}",
        "## Costs\n\nAt the same rollouts, means over presets and seeds. Prompts mixed: of those that got"
        " rollouts, the share trained on in a mixed group; rollouts mixed: of those generated, likewise. Milliseconds"
        f" are those spent in the rule.\n\n{costs(rollouts)}",
        "## Preset by preset",
        *(f"### {preset}\n\n{details(rollouts, p)}" for p, preset in enumerate(rollouts.presets)),
    ]
    return "\n\n".join(parts)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: words to the left, figures to the right."""
    body = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    words = [any(row[i][:1] == "`" or row[i] in ("none", ALL) for row in body) for i in range(len(heads))]
    rule = ["---" if i == 0 or words[i] else "---:" for i in range(len(heads))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *body))


def ahead(figure: Estimate) -> str:
    """Points with their interval, marked where it excludes 0."""
    if np.isnan(figure.mean):
        return "-"
    interval = "" if np.isnan(figure.half) else f" ± {100 * figure.half:.2f}"
    mark = {1: " ▲", -1: " ▼", 0: ""}[figure.sign]
    return f"{100 * figure.mean:+.2f}{interval}{mark}"


def verdict(results: Results) -> str:
    """Number of rules, and of pairs of rule and preset, ahead of uniform, behind it, and undecided."""
    rules = counted(rank(results))
    signs = [ranked.ahead[preset].sign for ranked in rules for preset in results.presets]
    whole = [ranked.ahead[ALL].sign for ranked in rules]
    return (
        f"Of {len(whole)} rules (without uniform and the oracles), {whole.count(1)} end ahead of uniform over all"
        f" presets, {whole.count(-1)} behind, {whole.count(0)} undecided. Of {len(signs)} pairs of rule"
        f" and preset: {signs.count(1)} ahead, {signs.count(-1)} behind, {signs.count(0)} undecided. Points of mean"
        f" success rate ahead of uniform, with paired 95 % intervals over {len(results.seeds)} seeds; ▲ and ▼ where the"
        " interval excludes 0. The row of uniform shows its level."
    )


def counted(ranking: Sequence[RankedRule]) -> list[RankedRule]:
    """All rules but uniform and the oracles."""
    return [ranked for ranked in ranking if ranked.rule not in (BASELINE, *ORACLES)]


def ranking(results: Results) -> str:
    """All rules, best first."""
    names = (ALL, *results.presets)

    def cells(ranked: RankedRule) -> list[str]:
        if ranked.rule == BASELINE:
            return [f"{100 * ranked.level[name].mean:.2f}" for name in names]
        return [ahead(ranked.ahead[name]) for name in names]

    return table(("rule", *names), ([f"`{s.rule}`", *cells(s)] for s in rank(results)))


def winners(results: Results) -> str:
    """The first two rules on each preset, the interval of their difference, and the ranks of our rules."""
    end = results.end("mean_p")
    return table(
        ("preset", "first", "ahead of uniform", "second", "first ahead of second", *(f"`{ours}`" for ours in OURS)),
        (_winner(results, end, p) for p in (None, *range(len(results.presets)))),
    )


def _winner(results: Results, measure: FloatArray, preset: int | None) -> list[str]:
    order = _order(results, measure, preset)
    first, *others = order
    second = others[0] if others else first
    uniform = results.rules.index(BASELINE)
    return [
        ALL if preset is None else results.presets[preset],
        f"`{results.rules[first]}`",
        ahead(_apart(measure, first, uniform, preset)),
        f"`{results.rules[second]}`",
        ahead(_apart(measure, first, second, preset)),
        *(_place(results, order, ours) for ours in OURS),
    ]


def _place(results: Results, order: Sequence[int], rule: str) -> str:
    places = [results.rules[r] for r in order]
    return f"{places.index(rule) + 1} of {len(places)}" if rule in places else "-"


def _order(results: Results, measure: FloatArray, preset: int | None) -> list[int]:
    """Indices of the rules that finished everywhere, without oracles, best first."""
    means = _of(measure, preset).mean(axis=1)
    known = [r for r, rule in enumerate(results.rules) if rule not in ORACLES and not np.isnan(means[r])]
    return sorted(known, key=lambda r: -means[r])


def _of(measure: FloatArray, preset: int | None) -> FloatArray:
    """``[R, S]`` on one preset, or the mean over all."""
    chosen: FloatArray = measure.mean(axis=1) if preset is None else measure[:, preset]
    return chosen


def _apart(measure: FloatArray, a: int, b: int, preset: int | None) -> Estimate:
    values = _of(measure, preset)
    return estimate(values[a] - values[b])


def other_measures(results: Results) -> str:
    """The first two rules by each measure, over all presets."""

    def rows() -> Iterator[list[str]]:
        for name, words in MEASURES.items():
            measure = results.area if name == "area" else results.end(name)
            yield [words, *_winner(results, measure, None)[1:]]

    return table(
        ("measure", "first", "ahead of uniform", "second", "first ahead of second", *(f"`{ours}`" for ours in OURS)),
        rows(),
    )


def losses(results: Results) -> str:
    """For each of our rules and each preset: rules whose paired interval lies above, around and below it."""
    end = results.end("mean_p")

    def rows() -> Iterator[list[object]]:
        for ours in (name for name in OURS if name in results.rules):
            o = results.rules.index(ours)
            for preset in (None, *range(len(results.presets))):
                apart = {results.rules[r]: _apart(end, r, o, preset) for r in _order(results, end, preset) if r != o}
                signs = [figure.sign for figure in apart.values()]
                better = [f"`{rule}` {100 * each.mean:+.2f}" for rule, each in apart.items() if each.sign > 0]
                name = ALL if preset is None else results.presets[preset]
                counts = signs.count(1), signs.count(0), signs.count(-1)
                yield [f"`{ours}`", name, *counts, ", ".join(better) or "none"]

    heads = ("ours", "preset", "ahead of it", "undecided", "behind it", "rules ahead of it, in points")
    return table(heads, rows())


def costs(results: Results) -> str:
    """Steps, rounds, tokens and time of each rule: means over presets and seeds."""
    spent = {name: np.nanmean(results.end(name), axis=(1, 2)) for name in ("steps", "rollouts", "rounds", "seconds")}
    tokens = results.end("tokens")
    mixed = {name: np.nanmean(results.curves[name], axis=(1, 2, 3)) for name in ("mixed_prompts", "mixed_rollouts")}
    relative = np.nanmean(tokens / tokens[results.rules.index(BASELINE)], axis=(1, 2))

    def rows() -> Iterator[list[str]]:
        for r, rule in enumerate(results.rules):
            steps = spent["steps"][r]
            yield [
                f"`{rule}`",
                f"{steps:,.0f}",
                f"{spent['rollouts'][r] / steps:,.0f}",
                f"{spent['rounds'][r]:,.0f}",
                f"{spent['rounds'][r] / steps:.2f}",
                f"{relative[r]:.3f}",
                *(f"{100 * mixed[name][r]:.0f} %" for name in mixed),
                f"{1e3 * spent['seconds'][r] / steps:.1f}",
            ]

    heads = ("rule", "steps", "rollouts a step", "rounds", "rounds a step", "tokens (uniform: 1)", "prompts mixed",
             "rollouts mixed", "ms a step")  # fmt: skip
    return table(heads, rows())


def details(results: Results, preset: int) -> str:
    """All measures on one preset: means over seeds."""
    names = ("mean_p", "held_out_p", "hard_quarter_p", "coverage", "mixed_groups", "belief_error")
    ends = {name: _means(results.end(name)[:, preset]) for name in names}
    share = results.share_to_uniform[:, preset]
    regret = None if results.regret is None else _means(results.regret[:, preset])
    order = np.argsort(-ends["mean_p"], kind="stable")  # NaN last

    def rows() -> Iterator[list[str]]:
        for r in order:
            catches = "never" if np.isnan(share[r]).any() else f"{share[r].mean():.2f}"
            yield [
                f"`{results.rules[r]}`",
                *(_number(ends[name][r], 3) for name in names[:4]),
                _number(ends["mixed_groups"][r], 0),
                _number(ends["belief_error"][r], 4),
                catches,
                "-" if regret is None else _number(100 * regret[r], 2),
            ]

    heads = ("rule", "mean p", "held out", "hardest quarter", "ever solved", "mixed groups / 1,000 rollouts",
             "belief error", "share of uniform's budget", "points below the oracle")  # fmt: skip
    return table(heads, rows())


def _means(values: FloatArray) -> FloatArray:
    """Over seeds, NaN if one is missing."""
    means: FloatArray = values.mean(axis=1)
    return means


def _number(value: float, digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"
