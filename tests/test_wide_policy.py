"""The policy for a wide vocabulary does what the laboratory's policy does, by another way."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from knapsack_arena.lab import wide_policy
from knapsack_arena.lab.policy import Policy
from knapsack_arena.lab.regimes import Regime
from knapsack_arena.lab.wide_policy import Forest, WidePolicy
from tiny_regimes import tiny

COUNTS = (3, 1, 6)


@pytest.fixture(scope="module")
def regime() -> Regime:
    return tiny()


@pytest.fixture
def both(regime: Regime, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Policy, WidePolicy]]:
    """Both policies in float32, the wide one in parts of a few rows."""
    monkeypatch.setattr(wide_policy, "TOKENS", 24)
    prompts, answers = zip(*((item.prompt, item.answer) for item in regime.train), strict=True)
    with torch.autocast("cpu", enabled=False):
        monkeypatch.setattr(wide_policy, "in_bfloat16", lambda: torch.autocast("cpu", enabled=False))
        made = [kind(regime.base_model(), prompts, answers, 1e-2, regime.longest) for kind in (Policy, WidePolicy)]
        yield made[0], made[1]  # type: ignore[misc]


def _sampled(policy: Policy, which: tuple[int, ...], counts: tuple[int, ...], seed: int = 5) -> list[list[int]]:
    return policy.sample(which, counts, torch.Generator().manual_seed(seed))


def test_rates_and_looks_are_the_same(both: tuple[Policy, WidePolicy]) -> None:
    policy, wide = both
    which = [7, 3, *range(20), 3]
    np.testing.assert_allclose(wide.success_rates(which), policy.success_rates(which), rtol=1e-4)
    np.testing.assert_allclose(wide.hidden_states(which), policy.hidden_states(which), rtol=1e-3, atol=1e-4)


def test_the_same_seed_samples_the_same_answers_and_their_log_probabilities(both: tuple[Policy, WidePolicy]) -> None:
    policy, wide = both
    for which in ((4, 0, 9), (9, 9, 2)):
        answers = _sampled(wide, which, COUNTS)
        assert answers == _sampled(policy, which, COUNTS)
        rows = np.repeat(which, COUNTS).tolist()
        for one, two in zip(wide.log_probs(rows, answers), policy.log_probs(rows, answers), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_a_prompt_may_begin_with_another_one_and_its_answer(regime: Regime, both: tuple[Policy, WidePolicy]) -> None:
    prompt, answer = regime.train[0].prompt, regime.train[0].answer
    prompts = [prompt, *(prompt + character for character in regime.characters), prompt + answer]
    for policy in both:
        policy.prompts = [list(ids) for ids in policy.tokenizer(prompts)["input_ids"]]
    which = tuple(range(len(prompts)))
    found = [_sampled(policy, which, (8,) * len(which)) for policy in both]
    assert found[0] == found[1]


def test_updates_are_the_same(both: tuple[Policy, WidePolicy]) -> None:
    """Also where answers of a group are equal, advantages cancel, or all are 0 and only momentum moves."""
    policy, wide = both
    which = (4, 0, 9)
    rows = np.repeat(which, COUNTS).tolist()
    generator = torch.Generator().manual_seed(0)
    for scale in (1.0, 1.0, 0.0):
        answers = _sampled(policy, which, COUNTS)
        advantages = scale * torch.randn(len(rows), generator=generator)
        advantages[0] = 0.0
        losses = [each.learn(rows, answers, advantages) for each in (policy, wide)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-6)
        for one, two in zip(policy.model.parameters(), wide.model.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1))
def test_a_forest_has_each_beginning_once(rows: list[list[int]]) -> None:
    forest = Forest()
    nodes = [forest.add(tokens) for tokens in rows]
    assert len(forest) == len({tuple(tokens[:n]) for tokens in rows for n in range(1, len(tokens) + 1)})
    seen = forest.seen().numpy()
    for tokens, each in zip(rows, nodes, strict=True):
        assert [forest.tokens[node] for node in each] == tokens
        assert [forest.depths[node] for node in each] == list(range(len(tokens)))
        for place, node in enumerate(each):
            assert np.flatnonzero(seen[node]).tolist() == each[: place + 1]
    assert np.array_equal(forest.seen(1).numpy(), seen[1:])
