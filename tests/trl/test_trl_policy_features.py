"""Features from the policy: values worked out by hand, and what beliefs learn from its confidence."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from knapsack_rl.beliefs.calibrated import CalibratedBeliefs
from knapsack_rl.features.policy import as_prompt_features, batches_of, hidden_states, policy_features
from knapsack_rl.outcomes import Outcomes


def test_by_hand() -> None:
    layers = [torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, -2.0]])]
    found = policy_features(layers, torch.tensor([[0.5, 0.25, 0.25]]).log())[0]
    rms = math.sqrt(12.5)
    expected = [3 / rms, 4 / rms, 0, -math.sqrt(2), math.log(0.5)]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("logits", [[0.0, -math.inf, -math.inf], [1000.0, -1000.0, 0.0]])
def test_certainty_is_finite(logits: list[float]) -> None:
    found = policy_features([torch.ones(1, 4)], torch.tensor([logits]))
    assert as_prompt_features(found.double().numpy()).confidence_P_C.tolist() == [[round(math.log(99), 2)]]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(20, 200), st.integers(1, 12), st.floats(1, 3))
def test_batches_hold_every_prompt_once_within_their_bounds(
    lengths: list[int], tokens: int, logits: int, padded: float
) -> None:
    def fits(some: list[int]) -> bool:
        area = len(some) * max(some)
        return area <= tokens and area <= padded * sum(some) and len(some) * len(set(some)) <= logits

    batches = batches_of(lengths, tokens, logits, padded)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    of_batches = [[lengths[i] for i in batch] for batch in batches]
    assert all(len(batch) == 1 or fits(batch) for batch in of_batches)
    # The shortest come first, and the next prompt would not have fitted.
    assert [length for batch in of_batches for length in batch] == sorted(lengths)
    assert not any(fits([*one, other[0]]) for one, other in itertools.pairwise(of_batches))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_a_prompt_without_a_token_has_no_features_and_changes_no_other(lengths: list[int]) -> None:
    model = small.model()
    prompts = [[4 + i % 8] * length for i, length in enumerate(lengths)]
    found = hidden_states(model, prompts)
    full = [i for i, length in enumerate(lengths) if length]
    assert torch.isnan(found).all(dim=1).tolist() == [length == 0 for length in lengths]
    if full:
        torch.testing.assert_close(found[full], hidden_states(model, [prompts[i] for i in full]))


@pytest.mark.parametrize("hidden", [8, 4000])
def test_confidence_is_learned_from_at_any_width(hidden: int) -> None:
    """With uninformative hidden states, and a policy that is right where it is confident, beliefs learn that."""
    rng = np.random.default_rng(0)
    ids = [f"p{i}" for i in range(400)]
    sure_P = rng.random(400) < 0.5
    logits = torch.zeros(400, 50)
    logits[torch.from_numpy(sure_P), 0] = 10.0
    noise = [torch.from_numpy(rng.standard_normal((400, hidden))) for _ in range(2)]
    features = as_prompt_features(policy_features(noise, logits).double().numpy())
    beliefs = CalibratedBeliefs()
    for start in range(0, 320, 8):
        rows = np.arange(start, start + 8)
        rewards_PG = np.repeat(sure_P[rows], 4).astype(float)
        batch = tuple(ids[start : start + 8])
        beliefs.observe(Outcomes(start // 8, batch, np.full(8, 4), rewards_PG, features=features.take(rows)))
    rates_P = beliefs.forecast(ids[320:], 40, features.take(np.arange(320, 400))).success_rates_P
    assert rates_P[sure_P[320:]].mean() > 0.85
    assert rates_P[~sure_P[320:]].mean() < 0.15
