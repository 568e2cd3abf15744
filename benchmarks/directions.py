"""Ceilings for the laboratory that know where an update leads: ``benchmarks/directions.py:DirectionOracle``.

| rule | what it plans by |
|---|---|
| `DirectionOracle` | true rates, and how much an update on a prompt raises the mean rate of 200 further prompts |
| `SteadyDirections` | the same by a running mean of directions |
| `WeighedDirections` | `oracle-pool`, its gain times the running slope over p (1 - p) |
| `RatesAlone` | control: the value of `DirectionOracle` where all prompts are aligned alike |

Groups push along grad p / sqrt(p (1 - p)), the expected direction of GRPO with normalised advantages. AdamW multiplies
by D = 1 / (sqrt(v) + eps). So to first order a mixed group of prompt i raises the mean rate J of the further prompts by

    gain_i = < D grad J, grad p_i > / sqrt(p_i (1 - p_i)),      value of n rollouts: P(mixed) * max(gain_i, 0)

The products of all candidates come from one pass in forward mode, along D grad J: no gradient of a single prompt is
needed. `per_sample` has those, for `benchmarks.affinity` and for the test that both agree.

    knapsack-rl lab --regimes skills --rules oracle-pool@prompt,benchmarks/directions.py:DirectionOracle@prompt
    python -m benchmarks.directions      # from the same weights, what a few steps of each rule do to the held-out rate
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias

import numpy as np
import torch
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from knapsack_arena.lab.environment import LanguageModelEnvironment, Loss
from knapsack_arena.lab.policy import Policy, Tokens
from knapsack_arena.lab.regimes import REGIMES, Item, Regime
from knapsack_arena.lab.trials import find_regime
from knapsack_arena.registry import Builder, RuleContext, make_strategy
from knapsack_arena.strategies import OneRound, StepSpec, Strategy, run_step
from knapsack_rl.allocator import KnapsackAllocator
from knapsack_rl.beliefs.forecast import Forecast
from knapsack_rl.beliefs.static import CERTAIN, StaticBeliefs
from knapsack_rl.files import State
from knapsack_rl.knapsack.limits import same_limits
from knapsack_rl.knapsack.solver import solve
from knapsack_rl.notation import FloatArray, text_ids
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.rules import AllocationProblem
from knapsack_rl.tasks.tiny_model import IGNORED
from knapsack_rl.values import information_gain, knapsack_marginals

FURTHER: Final = 200
# The running mean of D grad J is renewed after this many groups, and remembers about five renewals.
REFRESHED_AFTER: Final = 32
REMEMBERED: Final = 0.8
# Rates are kept this far from 0 and 1, so that no gain divides by 0.
LEAST: Final = 1e-9
# An instance that no campaign uses, for prompts of the same kind that are neither trained on nor held out.
_OTHER_INSTANCE: Final = 1000

Weights: TypeAlias = Mapping[str, torch.Tensor]
# Right-padded tokens of prompts and answers, and the targets among them; each ``[rows, longest]``.
Rows: TypeAlias = tuple[torch.Tensor, torch.Tensor]
# Of success rates and slopes < D grad J, grad p >, each ``[P]``.
Gain: TypeAlias = Callable[[FloatArray, FloatArray], FloatArray]


class Answers:
    """Log-probabilities of right answers as a function of a policy's weights."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.model = policy, policy.model

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The policy's weights now, by name."""
        return {name: weight.detach() for name, weight in self.model.named_parameters()}

    def flat(self) -> torch.Tensor:
        """A copy of all weights, ``[weights]``."""
        return torch.cat([weight.flatten() for weight in self.weights.values()])

    def rows(self, items: Sequence[Item]) -> Rows:
        """The tokens of prompts and their right answers, end of sequence included."""
        read = self.policy.tokenizer
        prompts: list[Tokens] = read([item.prompt for item in items])["input_ids"]
        answers: list[Tokens] = [[*ids, self.policy.end] for ids in read([item.answer for item in items])["input_ids"]]
        longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
        tokens = torch.full((len(items), longest), self.policy.pad)
        targets = torch.full_like(tokens, IGNORED)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            whole = len(prompt) + len(answer)
            tokens[row, :whole] = torch.tensor([*prompt, *answer])
            targets[row, len(prompt) : whole] = torch.tensor(answer)
        return tokens, targets

    def log_probs(self, weights: Weights, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Log-probability of each row's answer, ``[rows]``; padding on the right changes nothing before it."""
        logits = functional_call(self.model, dict(weights), (tokens,), {"use_cache": False}).logits[:, :-1]
        wanted = targets[:, 1:]
        each = logits.log_softmax(-1).gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
        found: torch.Tensor = (each * (wanted != IGNORED)).sum(1)
        return found

    def mean_rate_gradient(self, rows: Rows) -> dict[str, torch.Tensor]:
        """Gradient of the mean success rate of rows."""
        return dict(grad(lambda weights: self.log_probs(weights, *rows).exp().mean())(self.weights))

    def along(self, direction: Weights, rows: Rows) -> tuple[FloatArray, FloatArray]:
        """The success rate of each row, and < direction, grad rate >, in one pass in forward mode; each ``[rows]``."""
        rates = partial(_rates, self, rows)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no forward mode
            found, slopes = jvp(rates, (self.weights,), (dict(direction),))[:2]
        return found.double().numpy(), slopes.double().numpy()

    def per_sample(self, rows: Rows) -> torch.Tensor:
        """Gradient of the log-probability of each row's answer, ``[rows, weights]``."""

        def one(weights: Weights, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return self.log_probs(weights, tokens[None], targets[None])[0]

        with sdpa_kernel(SDPBackend.MATH):
            found = vmap(grad(one), (None, 0, 0))(self.weights, *rows)
        return torch.cat([found[name].flatten(1) for name in self.weights], 1)


def _rates(answers: Answers, rows: Rows, weights: Weights) -> torch.Tensor:
    return answers.log_probs(weights, *rows).exp()


def preconditioned(policy: Policy, gradient: Weights) -> dict[str, torch.Tensor]:
    """D times a gradient: each weight's divided by sqrt(v) + eps of AdamW, bias corrected; itself before any update."""
    found = {}
    (group,) = policy.optimizer.param_groups
    for name, weight in policy.model.named_parameters():
        state = policy.optimizer.state.get(weight)
        found[name] = gradient[name]
        if state:
            corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
            found[name] = gradient[name] / (corrected.sqrt() + group["eps"])
    return found


def further_items(regime: Regime, count: int = FURTHER) -> list[Item]:
    """Prompts to look ahead on, neither trained on nor held out; where nothing transfers, a random half of the prompts.

    Raises:
        ValueError: answers that a program judges, or a regime of a file whose held-out prompts are others.
    """
    family, rng = regime.name.partition("/")[0], np.random.default_rng(0)
    if regime.verify is not None or (regime.heldout != regime.train and family not in REGIMES):
        raise ValueError(f"regime {regime.name!r} has no further prompts with one right answer: use skills or keys")
    if regime.heldout == regime.train:
        others, count = list(regime.train), len(regime.train) // 2
    else:
        known = {item.prompt for item in (*regime.train, *regime.heldout)}
        others = [item for item in REGIMES[family](instance=_OTHER_INSTANCE).heldout if item.prompt not in known]
    return [others[i] for i in np.sort(rng.choice(len(others), min(count, len(others)), replace=False)).tolist()]


def directed_gain(rates_P: FloatArray, slopes_P: FloatArray) -> FloatArray:
    """< D grad J, grad p > / sqrt(p (1 - p)), 0 where it is negative or the prompt is solved or hopeless; ``[P]``."""
    spread_P = rates_P * (1 - rates_P)
    gain_P: FloatArray = np.where(spread_P > LEAST, slopes_P / np.sqrt(np.maximum(spread_P, LEAST)), 0.0)
    return np.maximum(gain_P, 0.0)


def weighed_gain(rates_P: FloatArray, slopes_P: FloatArray) -> FloatArray:
    """The paper's gain p (1 - p)^2 times the alignment < D grad J, grad p > / (p (1 - p)), or 0; ``[P]``."""
    spread_P = rates_P * (1 - rates_P)
    gain_P: FloatArray = np.where(spread_P > LEAST, slopes_P * (1 - rates_P), 0.0)
    return np.maximum(gain_P, 0.0)


class DirectionPlanner:
    """Divides a budget by P(mixed) times a gain; rates are true."""

    def __init__(self, context: RuleContext, gain: Gain = directed_gain, remembered: float = 0.0) -> None:
        """A planner of the laboratory's policy.

        Args:
            context: of a trial in the laboratory.
            gain: of rates and slopes.
            remembered: weight of the earlier directions in the running mean of D grad J; 0 takes the present one.

        Raises:
            ValueError: no policy to read gradients from, or a regime without further prompts.
        """
        environment = getattr(context.truth, "__self__", None)
        if not isinstance(environment, LanguageModelEnvironment) or not isinstance(environment.policy, Policy):
            raise ValueError("this oracle reads the gradients of a policy: run it in the laboratory, on its own models")
        self.policy, self.most = environment.policy, context.max_count
        self.gain, self.remembered = gain, remembered
        self.answers = Answers(environment.policy)
        self.items = {item.prompt: item for item in environment.regime.train}
        self.further = self.answers.rows(further_items(environment.regime))
        self.every = max(1, (REFRESHED_AFTER if remembered else 1) // context.groups)
        self._direction: dict[str, torch.Tensor] = {}

    def gains(self, prompt_ids: Sequence[str], step: int) -> tuple[FloatArray, FloatArray]:
        """True rates and gains of prompts, each ``[P]``."""
        if not self._direction or step % self.every == 0:
            now = preconditioned(self.policy, self.answers.mean_rate_gradient(self.further))
            old, share = self._direction or now, self.remembered
            self._direction = {name: share * old[name] + (1 - share) * now[name] for name in now}
        rates_P, slopes_P = self.answers.along(self._direction, self.answers.rows([self.items[i] for i in prompt_ids]))
        return rates_P, self.gain(rates_P, slopes_P)

    def plan(self, prompt_ids: Sequence[str], budget: int, step: int) -> Plan:
        """The counts of greatest total value."""
        ids = text_ids(prompt_ids)
        rates_P, gain_P = self.gains(ids, step)
        inside_P = np.clip(rates_P, LEAST, 1 - LEAST)
        low_P, high_P = np.zeros(len(ids), dtype=np.int64), np.full(len(ids), self.most)
        marginals = knapsack_marginals(inside_P, self.most) * (gain_P / information_gain(inside_P))[:, None]
        found = solve(marginals, budget, low_P, high_P)
        known_P, certain_P = np.ones(len(ids), dtype=bool), np.full(len(ids), CERTAIN)
        return Plan(step, ids, found.counts_P, budget, low_P, high_P, rates_P, certain_P, known_P, found.price)

    def observe(self, outcomes: Outcomes) -> None:
        """Nothing is learned."""

    def state_dict(self) -> State:
        """Nothing is learned."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Nothing is learned."""


class DirectionOracle(OneRound):
    """Plans like `oracle-pool`, with the gain of the module's first lines."""

    def __init__(self, context: RuleContext) -> None:
        super().__init__(DirectionPlanner(context), context.pool())


class SteadyDirections(OneRound):
    """The same with the running mean of D grad J."""

    def __init__(self, context: RuleContext) -> None:
        super().__init__(DirectionPlanner(context, remembered=REMEMBERED), context.pool())


class WeighedDirections(OneRound):
    """`oracle-pool`, its gain times the steady alignment of a prompt."""

    def __init__(self, context: RuleContext) -> None:
        super().__init__(DirectionPlanner(context, weighed_gain, REMEMBERED), context.pool())


def mixing_rule(forecast: Forecast, budget: int, low: int, high: int) -> AllocationProblem:
    """P(mixed) times the gain of a prompt whose slope is p (1 - p): `DirectionOracle` without directions."""
    rates_P = np.clip(forecast.success_rates_P, LEAST, 1 - LEAST)
    gain_P = directed_gain(rates_P, rates_P * (1 - rates_P)) / information_gain(rates_P)
    limits = same_limits(rates_P.size, low, high)
    return AllocationProblem(lambda rows, stop: knapsack_marginals(rates_P[rows], stop) * gain_P[rows, None], *limits)


class RatesAlone(OneRound):
    """Control: the value of `DirectionOracle` by rates alone, gain sqrt(p (1 - p))."""

    def __init__(self, context: RuleContext) -> None:
        if context.truth is None:
            raise ValueError("the oracle needs the true success rates, which are unknown here: leave it out")
        beliefs = StaticBeliefs(context.truth)
        super().__init__(KnapsackAllocator(beliefs, mixing_rule, 0, context.max_count), context.pool())


# From the weights after these quarter steps of `oracle-pool`, the change of the held-out rate after these further ones.
_STARTS: Final = (60, 240)
_CHECKED: Final = (1, 4, 8, 16)
_GROUPS: Final = 8
_COMPARED: Final[Mapping[str, Builder]] = {
    "uniform": partial(make_strategy, "uniform"),
    "oracle-pool": partial(make_strategy, "oracle-pool"),
    "RatesAlone": RatesAlone,
    "DirectionOracle": DirectionOracle,
}


def _context(environment: LanguageModelEnvironment) -> RuleContext:
    return RuleContext(_GROUPS, prompts=len(environment.prompt_ids), truth=environment.success_rates)


def _advance(environment: LanguageModelEnvironment, strategy: Strategy, step: int) -> None:
    spec = StepSpec(step, _GROUPS, _GROUPS * environment.regime.average, environment.take)
    environment.train(run_step(strategy, spec, environment.generate).batch)


def changes(environment: LanguageModelEnvironment, build: Builder, repeats: int) -> FloatArray:
    """Changes of the held-out rate after each checked number of steps, in points, ``[repeats, checked]``."""
    found, before = [], environment.held_out_rates().mean()
    for repeat in range(repeats):
        ahead = copy.deepcopy(environment)
        ahead.seed = 1000 + repeat
        ahead.take(len(ahead.prompt_ids))  # another order and other random numbers, the same for all rules
        strategy, rates = build(_context(ahead)), []
        for step in range(max(_CHECKED)):
            _advance(ahead, strategy, step)
            if step + 1 in _CHECKED:
                rates.append(100 * float(ahead.held_out_rates().mean() - before))
        found.append(rates)
    return np.array(found)


def main(words: Sequence[str] | None = None) -> None:
    """Print a table: means and standard errors over repeats."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=8)
    given = parser.parse_args(words)
    environment = LanguageModelEnvironment(find_regime("skills"), 0, Loss("prompt"))
    guide, step = make_strategy("oracle-pool", _context(environment)), 0
    assert isinstance(environment.policy, Policy)
    answers = Answers(environment.policy)
    print(f"| after | rule |{''.join(f' {count} steps |' for count in _CHECKED)}\n|---|---|{len(_CHECKED) * '---|'}")
    for start in _STARTS:
        moved = []
        while step < start:
            weights = answers.flat()
            _advance(environment, guide, step)
            moved.append(float((answers.flat() - weights).norm() / weights.norm()))
            step += 1
        print(f"| {start} | change of the weights in a step: {100 * np.mean(moved):.2f} % |{len(_CHECKED) * ' |'}")
        for name, build in _COMPARED.items():
            found = changes(environment, build, given.repeats)
            mean, error = found.mean(0), found.std(0, ddof=1) / given.repeats**0.5
            cells = (f"{one:+.2f} ± {other:.2f}" for one, other in zip(mean, error, strict=True))
            print(f"| {start} | `{name}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
