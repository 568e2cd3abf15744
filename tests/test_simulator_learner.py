"""GRPO's update with two outcomes: by hand, against numerical derivatives, and against REINFORCE on a real bandit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapsack_arena.simulator.learner import LearnerSettings, advantages, loss_weights, policy_gradient
from knapsack_arena.strategies import Batch
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes

PLAIN = LearnerSettings(scale_advantages=False)
NAN = float("nan")


def outcomes(*groups: list[float]) -> Outcomes:
    return Outcomes.of_groups(0, [(f"q{i}", group) for i, group in enumerate(groups)])


def test_advantages_are_those_of_grpo() -> None:
    got = advantages(Batch(outcomes([1, 0, 0, 0], [1, 1], [0], [1, NAN, 0])))
    # Mean .25 and sample deviation .5; nothing to tell apart; alone; mean .5 and deviation sqrt(.5) of what answered.
    half = 0.5 / 0.5**0.5
    assert got == pytest.approx([1.5, -0.5, -0.5, -0.5, 0, 0, 0, half, 0, -half], abs=1e-5)
    assert advantages(Batch(outcomes([1, 0, 0, 0])), scaled=False).tolist() == [0.75, -0.25, -0.25, -0.25]


def test_a_thinned_group_is_judged_by_all_that_was_drawn() -> None:
    thinned = Batch(outcomes([1, 1, 0]), baseline_P=np.array([0.25]), scale_P=np.array([0.5]))
    assert advantages(thinned) == pytest.approx([1.5, 1.5, -0.5], abs=1e-5)
    gradient_P, _ = policy_gradient(thinned, np.array([0.1]), LearnerSettings())
    assert gradient_P == pytest.approx([(2 * 1.5 * 0.9 + 0.5 * 0.1) / 3], abs=1e-5)


def test_rollouts_or_prompts_weigh_alike() -> None:
    three = outcomes([1, 0, 1, 0, 1, 0], [1, 0], [], [NAN, NAN])
    assert loss_weights(three, "rollout")[:2].tolist() == [1 / 8, 1 / 8]
    assert loss_weights(three, "prompt")[:2].tolist() == [1 / 12, 1 / 4]
    gradients = {
        weighting: policy_gradient(Batch(three), np.full(4, 0.5), replace(PLAIN, weighting=weighting))[0]
        for weighting in ("rollout", "prompt")
    }
    # Without scaling g = w n (1/2)(1/2): by rollout in proportion to the group, by prompt the same.
    assert gradients["rollout"].tolist() == [6 / 32, 2 / 32, 0, 0]
    assert gradients["prompt"].tolist() == pytest.approx([1 / 8, 1 / 8, 0, 0])


@given(
    n=st.integers(2, 30),
    part=st.floats(0, 1),
    rate=st.floats(0.01, 0.99),
    baseline=st.one_of(st.none(), st.floats(0, 1)),
    weighting=st.sampled_from(["rollout", "prompt"]),
)
def test_it_is_the_derivative_of_the_surrogate_loss(
    n: int, part: float, rate: float, baseline: float | None, weighting: str
) -> None:
    successes = round(part * n)
    rewards = np.array([1.0] * successes + [0.0] * (n - successes))
    given_P = None if baseline is None else np.array([baseline])
    batch = Batch(outcomes(rewards.tolist()), baseline_P=given_P, scale_P=None if baseline is None else np.ones(1))
    settings = LearnerSettings(weighting=weighting)  # type: ignore[arg-type]

    def surrogate(z: float) -> float:
        log_pi = np.where(rewards == 1, -np.log1p(np.exp(-z)), -np.log1p(np.exp(z)))
        return float((advantages(batch) * log_pi).sum() / n)

    z, h = np.log(rate / (1 - rate)), 1e-5
    gradient_P, power = policy_gradient(batch, np.array([rate]), settings)
    assert gradient_P[0] == pytest.approx((surrogate(z + h) - surrogate(z - h)) / (2 * h), rel=1e-4, abs=1e-7)
    assert power == pytest.approx((advantages(batch) ** 2).sum() / n**2)


@given(n=st.integers(2, 40), part=st.floats(0, 1), rate=st.floats(0, 1))
def test_with_its_own_mean_a_group_never_unteaches_and_its_true_rate_does_not_matter(
    n: int, part: float, rate: float
) -> None:
    k = round(part * n)
    gradient_P, _ = policy_gradient(Batch(outcomes([1.0] * k + [0.0] * (n - k))), np.array([rate]), PLAIN)
    assert gradient_P[0] == pytest.approx(k / n * (1 - k / n), abs=1e-12)


@pytest.mark.parametrize("scaled", [True, False])
def test_it_is_what_reinforce_does_to_a_softmax_bandit(scaled: bool) -> None:
    """Two arms with parameters of their own; every action is sampled and its score function is added up."""
    rng, groups, n = np.random.default_rng(0), 40_000, 6
    theta = np.array([0.3, 1.1])
    pi = np.exp(theta) / np.exp(theta).sum()
    arms = rng.choice(2, size=(groups, n), p=pi)  # arm 0 is a success
    score = np.eye(2)[arms] - pi  # d log pi(arm) / d theta
    rewards = (arms == 0).astype(float)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    weight = centred / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-6) if scaled else centred
    gradients: FloatArray = (weight[:, :, None] * score).sum(axis=1) / (groups * n)

    rollouts = Outcomes(0, tuple(map(str, range(groups))), np.full(groups, n), rewards.ravel())
    ours_P, _ = policy_gradient(Batch(rollouts), np.full(groups, pi[0]), replace(PLAIN, scale_advantages=scaled))
    # z = theta_0 - theta_1 rises by the step of one and by the fall of the other.
    assert gradients[:, 0] - gradients[:, 1] == pytest.approx(2 * ours_P, abs=1e-12)
    if (
        not scaled
    ):  # and its mean is the gradient of the success rate itself, less the share that the group's mean takes
        assert groups * ours_P.mean() == pytest.approx((n - 1) / n * pi[0] * pi[1], rel=0.02)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("own_rate", -1.0),
        ("shared_rate", NAN),
        ("noise", float("inf")),
        ("forgetting", 0.0),
        ("memory", 1.0),
        ("weighting", "token"),
        ("optimizer", "lion"),
    ],
)
def test_settings_that_make_no_sense_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value!r}"):
        LearnerSettings(**{field: value})  # type: ignore[arg-type]
