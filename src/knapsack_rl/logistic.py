"""Two small learners of forecasts, online and in closed form per batch: where a rate lies, and how sure to be of it.

Both forget: what an outcome said counts less with every later batch, because the policy moves.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.notation import FloatArray, IntArray

# Rates are kept off 0 and 1: nothing a policy samples is impossible, and logits stay finite.
LEAST_RATE = 0.002
_NEWTON_STEPS = 3
_LONGEST_STEP = 1.0


def logistic(logits: FloatArray) -> FloatArray:
    """1 / (1 + exp(-x)), without overflow."""
    rates: FloatArray = 0.5 * (1 + np.tanh(0.5 * logits))
    return rates


def logit(rates: FloatArray) -> FloatArray:
    """log(p / (1 - p)) of rates kept within ``LEAST_RATE`` of 0 and 1."""
    p = np.clip(rates, LEAST_RATE, 1 - LEAST_RATE)
    logits: FloatArray = np.log(p) - np.log1p(-p)
    return logits


class OnlineLogistic:
    """Logistic regression on a stream of batches: the last estimate is the prior of the next, and fades to the first.

    Laplace's approximation, carried on: after a batch the belief about the weights is normal, with the mean at the
    batch's optimum (three Newton steps from the last) and the curvature there added to the precision. Before the next,
    the belief is mixed with the initial one: precision = d * precision + (1 - d) * ridge.

    Memory and time do not grow with the length of the stream: ``F`` numbers and ``F * F``.
    """

    def __init__(self, prior_F: FloatArray, ridge_F: FloatArray, discount: float) -> None:
        """A learner that has seen nothing.

        Args:
            prior_F: weights to start from and to fall back to, ``[F]``.
            ridge_F: precision of that prior, ``[F]``, positive.
            discount: share of what is known that survives a batch, in (0, 1].
        """
        self.prior_F, self.ridge_F, self.discount = prior_F, ridge_F, discount
        self.weights_F: FloatArray = prior_F.copy()
        self.precision_F_F: FloatArray = np.diag(ridge_F)

    def logits(self, features_P_F: FloatArray) -> FloatArray:
        """Log odds of success, ``[P]``."""
        found: FloatArray = features_P_F @ self.weights_F
        return found

    def learn(self, features_P_F: FloatArray, successes_P: FloatArray, attempts_P: FloatArray) -> None:
        """Take in a batch of binomial outcomes."""
        kept = self.discount * self.precision_F_F
        precision: FloatArray = kept + (1 - self.discount) * np.diag(self.ridge_F)
        towards = kept @ self.weights_F + (1 - self.discount) * self.ridge_F * self.prior_F
        prior = np.asarray(np.linalg.solve(precision, towards), dtype=np.float64)
        weights = prior
        curvature = np.zeros_like(precision)
        for _ in range(_NEWTON_STEPS):
            rates = logistic(features_P_F @ weights)
            slope = features_P_F.T @ (successes_P - attempts_P * rates) - precision @ (weights - prior)
            spread = np.maximum(attempts_P * rates * (1 - rates), 1e-6)
            curvature = (features_P_F * spread[:, None]).T @ features_P_F
            step = np.asarray(np.linalg.solve(precision + curvature, slope), dtype=np.float64)
            weights = weights + np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
        self.weights_F, self.precision_F_F = weights, precision + curvature

    def state(self) -> dict[str, FloatArray]:
        """What was learned, as arrays."""
        return {"weights": self.weights_F, "precision": self.precision_F_F}

    def restore(self, state: Mapping[str, NDArray[np.float64]]) -> None:
        """Take up what `state` gave."""
        self.weights_F, self.precision_F_F = state["weights"].copy(), state["precision"].copy()


class Concentration:
    """How strong a Beta belief should be, learned from how far outcomes have strayed from forecasts.

    For every level of evidence, the strength from a grid under which the outcomes so far were likeliest (beta-binomial
    likelihood, fading). A strength of 4 means: as uncertain as after four rollouts.
    """

    GRID = np.array([0.5, 1.0, 2.0, 3.0, 4.5, 7.0, 11.0, 16.0, 32.0, 64.0, 128.0])
    # Levels of evidence, as the weight that own counts have among themselves and four rollouts of anybody's.
    EDGES = np.array([0.15, 0.45, 0.7])
    # A weak opinion for levels that were not met: about 4, give or take a factor of e.
    PRIOR = -0.5 * np.log(GRID / 4) ** 2

    def __init__(self, discount: float) -> None:
        """No outcomes yet; ``discount`` is the share of the record that survives a batch."""
        self.discount = discount
        self.record_L_G = np.zeros((self.EDGES.size + 1, self.GRID.size))

    def strength(self, evidence_P: FloatArray) -> FloatArray:
        """The strength of beliefs with so much evidence (a share in [0, 1)), ``[P]``."""
        best_L = np.argmax(self.record_L_G + self.PRIOR, axis=1)
        strength_P: FloatArray = self.GRID[best_L[np.digitize(evidence_P, self.EDGES)]]
        return strength_P

    def learn(self, evidence_P: FloatArray, rates_P: FloatArray, successes_P: IntArray, attempts_P: IntArray) -> None:
        """Add the likelihood of a batch of outcomes under every strength."""
        self.record_L_G *= self.discount
        alpha_P_G = rates_P[:, None] * self.GRID
        likelihood = beta_binomial_log_likelihood(alpha_P_G, self.GRID - alpha_P_G, successes_P, attempts_P)
        np.add.at(self.record_L_G, np.digitize(evidence_P, self.EDGES), likelihood)


def beta_binomial_log_likelihood(
    alpha_P_G: FloatArray, beta_P_G: FloatArray, successes_P: IntArray, attempts_P: IntArray
) -> FloatArray:
    """Log B(a + k, b + n - k) - log B(a, b): k successes in n tries, in a given order, under Beta(a, b); ``[P, G]``."""
    successes_P_1, attempts_P_1 = successes_P[:, None], attempts_P[:, None]
    after = _log_beta(alpha_P_G + successes_P_1, beta_P_G + attempts_P_1 - successes_P_1)
    return after - _log_beta(alpha_P_G, beta_P_G)


def _log_beta(alpha: FloatArray, beta: FloatArray) -> FloatArray:
    return _log_gamma(alpha) + _log_gamma(beta) - _log_gamma(alpha + beta)


def _log_gamma(x: FloatArray) -> FloatArray:
    """The log of Gamma(x) for x > 0, to about 1e-9: Stirling's series at x + 5, brought back by the recurrence."""
    shifted = x + 5
    series = (1 / 12 - (1 / 360 - 1 / (1260 * shifted**2)) / shifted**2) / shifted
    stirling = (shifted - 0.5) * np.log(shifted) - shifted + 0.5 * np.log(2 * np.pi) + series
    found: FloatArray = stirling - np.log(x * (x + 1) * (x + 2) * (x + 3) * (x + 4))
    return found
