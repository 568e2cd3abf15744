"""The table of the evidence campaign: each rule, tuned and at the common setting, against tuned uniform, run by run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.campaign import Line
from knapsack_arena.compare.results import ROUNDING, first_reach, isotonic
from knapsack_arena.statistics import (
    holm,
    interquartile_mean,
    normalised,
    probability_of_improvement,
    stratified_bootstrap,
)
from knapsack_rl.notation import FloatArray

MARKS: Final = ("<!-- evidence -->", "<!-- /evidence -->")
REPLICATIONS: Final = 20_000
DRAWS: Final = 2_000
# Runs below which a claim is not tested.
FEWEST: Final = 4
DEFAULT: Final = "calibrated-pool@prompt"
PRICED: Final = f"{DEFAULT}@priced"
# As registered in docs/log.md: the rule on the left is ahead of the one on the right.
CLAIMS: Final = ((DEFAULT, "uniform"), (PRICED, "uniform"), (PRICED, DEFAULT), (PRICED, "ar3po@kept"))

# Comparisons of settings that are no claims, where both were run; docs/log.md says which were registered.
COMPARED: Final = (
    (f"{DEFAULT}@kept@step=1/4", f"{DEFAULT}@step=1/4"),
    (f"{PRICED}@step=1/4", f"{DEFAULT}@kept@step=1/4"),
    (f"{PRICED}@ratio@step=1/4", f"{PRICED}@step=1/4"),
    ("benchmarks/controls.py:Shuffled@prompt@step=1/4", "uniform@step=1/4"),
    ("beta-pool@prompt@step=1/4", f"{DEFAULT}@step=1/4"),
    (f"{DEFAULT}@look=texts@step=1/4", f"{DEFAULT}@step=1/4"),
    (f"{DEFAULT}@look=base@step=1/4", f"{DEFAULT}@step=1/4"),
    (f"{DEFAULT}@look=odds@step=1/4", f"{DEFAULT}@step=1/4"),
    (f"{DEFAULT}@look=odds@step=1/4", f"{DEFAULT}@look=texts@step=1/4"),
    (f"{DEFAULT}@group=4@step=1/4", f"{DEFAULT}@step=1/4"),
    (f"{DEFAULT}@group=4@step=1/4", "uniform@step=1/4"),
    (f"{DEFAULT}@group=6@step=1/4", f"{DEFAULT}@step=1/4"),
    (f"{DEFAULT}@group=8@step=1/4", f"{DEFAULT}@step=1/4"),
    (f"{DEFAULT}@group=8@step=1/4", "uniform@step=1/4"),
    (f"{PRICED}@group=4@step=1/4", f"{PRICED}@step=1/4"),
    (f"{PRICED}@group=4@step=1/4", "uniform@step=1/4"),
    (f"{PRICED}@group=4@step=1/4", "ar3po@kept@step=1/4"),
    (f"{PRICED}@group=8@step=1/4", f"{PRICED}@step=1/4"),
    (f"{PRICED}@group=8@step=1/4", "uniform@step=1/4"),
    (f"{PRICED}@group=8@step=1/4", "ar3po@kept@step=1/4"),
    ("calibrated-pool@step=1/4", f"{DEFAULT}@step=1/4"),
    ("calibrated-pool@step=1/4", "uniform@step=1/4"),
    ("calibrated-pool@priced@step=1/4", f"{PRICED}@step=1/4"),
    ("calibrated-pool@priced@step=1/4", "uniform@step=1/4"),
    ("calibrated-pool@priced@step=1/4", "ar3po@kept@step=1/4"),
)

# Knows the true success rates of its pool of four: the ceiling of one round without memory.
ORACLE: Final = "oracle-pool@prompt"
# Regimes whose runs may lose the prompts of a mode, and the held-out rate below which a run is then called stuck at its
# end: others end above.
STUCK_REGIMES: Final = ("long", "hopeless")
STUCK_BELOW: Final = 0.9
# Runs up to which all patterns of signs are counted.
MOST: Final = 16

# A run: its base model and seed.
Run = tuple[str, int]


@dataclass(frozen=True)
class Measure:
    """What a run is judged by; areas, ends and shares in points.

    Attributes:
        area: under the held-out success rate, over the regime's budget.
        end: held-out success rate at the regime's budget.
        hard: that of the harder half of the held-out prompts.
        solved: prompts solved at least once by then.
    """

    area: float
    end: float
    hard: float
    solved: float


def measure(line: Line) -> Measure:
    """Measure a run up to the regime's budget."""
    x = np.asarray(line["spent"])
    within = np.unique(np.concatenate([x[x < 1], [1.0]]))
    levels = np.interp(within, x, line["held_out_p"])
    at_end = [100 * float(np.interp(1.0, x, line[name])) for name in ("held_out_p", "hard_half_p", "coverage")]
    area = 100 * float(np.trapezoid(levels, within) / (1 - within[0]))
    return Measure(area, *at_end)


def monotone(line: Line) -> FloatArray:
    """The held-out rate along a run, made non-decreasing, because a noisy curve touches a line early; ``[points]``."""
    return isotonic(np.asarray(line["held_out_p"], dtype=np.float64))


def target_of(reference: Line) -> float:
    """The held-out rate of the reference's monotone curve at the regime's budget."""
    return float(np.interp(1.0, reference["spent"], monotone(reference)))


def cost_to(line: Line, target: float, of: str = "spent") -> float | None:
    """What a run has spent when its monotone curve reaches a target; None if it never does.

    Args:
        line: a run.
        target: held-out rate.
        of: ``spent`` (rollouts, as a share of the regime's budget), ``tokens`` or ``updates``.
    """
    found = first_reach(monotone(line), target - ROUNDING, np.asarray(line[of], dtype=np.float64))
    return None if np.isnan(found) else found


def bootstrap(difference_by_run: Mapping[Run, float], seed: int = 0) -> FloatArray:
    """Means of differences whose runs are drawn with replacement, ``[replications]``.

    Within each base model; over all of them where one has fewer than `FEWEST`, of which intervals would be too narrow.
    """
    random = np.random.default_rng(seed)
    strata: dict[str, list[float]] = {}
    for (base, _), value in sorted(difference_by_run.items()):
        strata.setdefault(base, []).append(value)
    if min(map(len, strata.values())) < FEWEST:
        strata = {"all": list(difference_by_run.values())}
    sums = np.zeros(REPLICATIONS)
    for values in strata.values():
        drawn = random.integers(len(values), size=(REPLICATIONS, len(values)))
        sums += np.asarray(values)[drawn].sum(axis=1)
    return sums / len(difference_by_run)


def sign_test(difference_by_run: Mapping[Run, float]) -> float:
    """Two-sided p-value of a mean of 0, over all patterns of signs of the differences; exact for few runs.

    Raises:
        ValueError: more than `MOST` runs.
    """
    values = np.array(list(difference_by_run.values()))
    if values.size > MOST:
        raise ValueError(f"{values.size} runs have too many patterns of signs: at most {MOST} are counted")
    patterns = 1 - 2 * ((np.arange(2**values.size)[:, None] >> np.arange(values.size)) & 1)
    means = np.abs(patterns @ values)
    return float((means >= np.abs(values.sum()) - 1e-9).mean())


def evidence_tables(lines: Sequence[Line], tuned: Mapping[tuple[str, str], str], passes: Sequence[Line] = ()) -> str:
    """One Markdown table for each regime, and one of the claims.

    Args:
        lines: of the evidence campaign.
        tuned: the tuned setting's name, by regime and rule.
        passes: of the campaign for pass@1 and pass@8.
    """
    parts: list[str] = []
    for regime in dict.fromkeys(line["regime"].partition("/")[0] for line in lines):
        by_name = _by_name(lines, regime)
        names = {rule: tuned[regime, rule] for rule in (DEFAULT, PRICED, "ar3po@kept", "uniform")}
        known = {name for rule, best in names.items() for name in (rule, best)}
        others = {name: name for name in sorted(by_name) if name not in known}
        reference = by_name.get(names["uniform"], {})
        if not reference:
            continue
        parts += [
            f"*{regime}*\n",
            _HEADER,
            *_rows(by_name, names | others, reference),
            "",
            *_costs(by_name, names),
            "",
            *_passes(passes, regime, names),
            *_claims(by_name, names),
            "",
            *_compared(by_name),
            "",
            *(_stuck(by_name) if regime in STUCK_REGIMES else ()),
        ]
    return "\n".join(parts)


def _by_name(lines: Sequence[Line], regime: str) -> dict[str, dict[Run, Line]]:
    """The lines of a regime by rule and run."""
    found: dict[str, dict[Run, Line]] = {}
    for line in lines:
        family, _, instance = line["regime"].partition("/")
        if family == regime:
            found.setdefault(line["rule"], {})[instance, line["seed"]] = line
    return found


def _of_oracle(by_name: Mapping[str, Mapping[Run, Line]]) -> Mapping[Run, Line]:
    """The oracle's runs, at the setting that it was run at."""
    return next((found for name, found in by_name.items() if name.partition("@step=")[0] == ORACLE), {})


_HEADER: Final = (
    "| rule | setting | runs | area, ahead of tuned uniform | of the oracle's lead | budget to its end |"
    " end | harder half | ever solved |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def _rows(
    by_name: Mapping[str, Mapping[Run, Line]], names: Mapping[str, str], reference: Mapping[Run, Line]
) -> Iterator[str]:
    zero = {run: measure(line) for run, line in reference.items()}
    oracle = {run: measure(line).area - zero[run].area for run, line in _of_oracle(by_name).items() if run in zero}
    for rule, best in names.items():
        for name in dict.fromkeys((best, rule)):
            found = {run: line for run, line in by_name.get(name, {}).items() if run in reference}
            if not found:
                continue
            measured = {run: measure(line) for run, line in found.items()}
            ahead = {run: each.area - zero[run].area for run, each in measured.items()}
            share = _share(ahead, oracle)
            budget = _median([cost_to(line, target_of(reference[run])) for run, line in found.items()])
            ends = [
                f"{np.mean([getattr(each, what) - getattr(zero[run], what) for run, each in measured.items()]):+.1f}"
                for what in ("end", "hard", "solved")
            ]
            base, options = _split(name)
            setting = options.replace("@", " ").strip() or "common"
            cells = (f"`{base}`", setting, str(len(found)), _interval(ahead), share, budget, *ends)
            yield f"| {' | '.join(cells)} |"


def _median(costs: Sequence[float | None]) -> str:
    """Median over runs, and how many never reach the target."""
    found = float(np.median([np.inf if each is None else each for each in costs]))
    never = sum(each is None for each in costs)
    if np.isinf(found):
        return "never"
    return f"{found:.2f}" + (f" ({never} never)" if never else "")


_COSTS: Final = (
    "| rule, tuned | P(ahead of uniform) | IQM, uniform 0 and oracle 1 | rollouts | tokens | updates |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: |"
)


def _costs(by_name: Mapping[str, Mapping[Run, Line]], names: Mapping[str, str]) -> Iterator[str]:
    """How often a rule is ahead, and what it spends to uniform's end as shares of uniform's own run.

    For rules and references with as many runs of each base model.
    """
    reference = by_name[names["uniform"]]
    zero_S_R = _areas(reference)
    one_S_R = _areas(_of_oracle(by_name))
    yield _COSTS
    for rule, name in names.items():
        found = by_name.get(name, {})
        area_S_R = _areas(found)
        if zero_S_R is None or area_S_R is None or set(found) - set(reference):
            continue
        chance = f"{probability_of_improvement(area_S_R, zero_S_R):.2f}" if rule != "uniform" else ""
        middle = ""
        if one_S_R is not None and one_S_R.shape[1] == zero_S_R.shape[1] and rule != "uniform":
            middle = _middle(area_S_R, zero_S_R, one_S_R)
        costs = []
        for of in ("spent", "tokens", "updates"):
            shares = []
            for run, line in found.items():
                own = float(np.interp(1.0, reference[run]["spent"], reference[run][of]))
                cost = cost_to(line, target_of(reference[run]), of)
                shares.append(None if cost is None else cost / own)
            costs.append(_median(shares))
        yield f"| `{rule}` | {chance} | {middle} | {' | '.join(costs)} |"


def _passes(lines: Sequence[Line], regime: str, names: Mapping[str, str]) -> Iterator[str]:
    """pass@1 and pass@8 at the regime's budget, means over runs, and differences from tuned uniform's."""
    by_name = _by_name(lines, regime)
    reference = by_name.get(names["uniform"])
    if not reference:
        return
    yield "| rule, tuned | runs | pass@1 | pass@8 | ahead of tuned uniform, pass@1 | pass@8 |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for rule, name in names.items():
        found = {run: line for run, line in by_name.get(name, {}).items() if run in reference}
        if not found:
            continue
        means = [f"{100 * np.mean([line[what] for line in found.values()]):.1f}" for what in ("pass_1", "pass_8")]
        ahead = [
            _interval({run: 100 * (line[what] - reference[run][what]) for run, line in found.items()})
            for what in ("pass_1", "pass_8")
        ]
        yield f"| `{rule}` | {len(found)} | {' | '.join(means + ahead)} |"
    yield ""


def _areas(found: Mapping[Run, Line]) -> FloatArray | None:
    """Areas, seeds by base models, ``[S, R]``; None where base models have different numbers of runs."""
    by_base: dict[str, list[float]] = {}
    for (base, _), line in sorted(found.items()):
        by_base.setdefault(base, []).append(measure(line).area)
    if len(set(map(len, by_base.values()))) != 1:  # or there is no run
        return None
    return np.array(list(by_base.values())).T


def _middle(area_S_R: FloatArray, zero_S_R: FloatArray, one_S_R: FloatArray) -> str:
    """Interquartile mean with its interval, runs drawn within base models."""
    scores_S_R = normalised(area_S_R, zero_S_R, one_S_R)
    low, high = stratified_bootstrap(interquartile_mean, scores_S_R, replications=DRAWS)
    return f"{interquartile_mean(scores_S_R):.2f} ({low:.2f} to {high:.2f})"


def _split(name: str) -> tuple[str, str]:
    """The rule with what belongs to it, and the setting of its learning rate and steps."""
    rule, *options = name.split("@")
    settings = [each for each in options if each.startswith(("lr=", "step="))]
    return "@".join([rule, *(each for each in options if each not in settings)]), "@".join(settings)


def _share(ahead: Mapping[Run, float], oracle: Mapping[Run, float]) -> str:
    """The mean lead as a share of the oracle's, over the runs of both."""
    both = [run for run in ahead if run in oracle]
    if not both:
        return ""
    return f"{sum(ahead[run] for run in both) / sum(oracle[run] for run in both):.2f}"


def _claims(by_name: Mapping[str, Mapping[Run, Line]], names: Mapping[str, str]) -> Iterator[str]:
    """The registered claims with p-values adjusted for their number."""
    p_values, texts = {}, {}
    for ahead, behind in CLAIMS:
        both = _differences(by_name, names[ahead], names[behind])
        if len(both) < FEWEST:
            continue
        claim = f"`{ahead}` ahead of `{behind}`"
        p_values[claim] = sign_test(both)
        texts[claim] = _summary(both)
    adjusted = holm(p_values)
    if adjusted:
        yield "| claim, both tuned | area, points | runs ahead | p (Holm) |\n| --- | ---: | ---: | ---: |"
    for claim, text in texts.items():
        yield f"| {claim} | {text} | {adjusted[claim]:.3f} |"


def _compared(by_name: Mapping[str, Mapping[Run, Line]]) -> Iterator[str]:
    """The comparisons that are no claims, without tests."""
    found = {pair: _differences(by_name, *pair) for pair in COMPARED}
    rows = [f"| `{one}` minus `{other}` | {_summary(both)} |" for (one, other), both in found.items() if both]
    if rows:
        yield "| other comparisons | area, points | runs ahead |\n| --- | ---: | ---: |"
    yield from rows


def _stuck(by_name: Mapping[str, Mapping[Run, Line]]) -> Iterator[str]:
    """How many runs are stuck: of rules that keep successes and of those that do not, and by rule."""
    counts = {name: (sum(map(is_stuck, found.values())), len(found)) for name, found in by_name.items()}
    with_kept = [name for name in counts if {"kept", "priced"} & set(name.split("@"))]
    without = [name for name in counts if name not in with_kept]
    for names, what in ((with_kept, "with kept successes"), (without, "without them")):
        stuck, runs = sum(counts[name][0] for name in names), sum(counts[name][1] for name in names)
        each = ", ".join(f"`{name}` {counts[name][0]} of {counts[name][1]}" for name in sorted(names))
        yield f"- Runs stuck below .90 at 1.2 to 1.5 times the budget, {what}: **{stuck} of {runs}** ({each})."
    yield ""


def is_stuck(line: Line) -> bool:
    """Whether the mean held-out rate of a run's last fifth is below `STUCK_BELOW`."""
    x, y = np.asarray(line["spent"]), np.asarray(line["held_out_p"])
    return bool(y[x >= 0.8 * x[-1]].mean() < STUCK_BELOW)


def _differences(by_name: Mapping[str, Mapping[Run, Line]], one: str, other: str) -> dict[Run, float]:
    """Differences of area over the runs of both."""
    first, second = by_name.get(one, {}), by_name.get(other, {})
    return {run: measure(first[run]).area - measure(second[run]).area for run in first if run in second}


def _summary(difference_by_run: Mapping[Run, float]) -> str:
    """Mean with its interval, and the runs that are ahead."""
    ahead = sum(value > 0 for value in difference_by_run.values())
    return f"{_interval(difference_by_run)} | {ahead} of {len(difference_by_run)}"


def _interval(difference_by_run: Mapping[Run, float]) -> str:
    """Mean and 95 % interval, in points."""
    mean = float(np.mean(list(difference_by_run.values())))
    if all(value == 0 for value in difference_by_run.values()):
        return "0"
    if len(difference_by_run) == 1:
        return f"{mean:+.1f}"
    low, high = np.quantile(bootstrap(difference_by_run), [0.025, 0.975])
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
