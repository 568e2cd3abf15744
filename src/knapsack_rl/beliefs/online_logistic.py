"""Two online learners for calibrated forecasts: a logistic regression for rates, and a likelihood for pseudo-counts.

Both decay: the weight of a batch falls exponentially with the number of later batches, because the policy changes.
"""

from __future__ import annotations

import numpy as np

from knapsack_rl.notation import FloatArray, IntArray

# Rates are clipped to [MIN_RATE, 1 - MIN_RATE], so that logits are finite.
MIN_RATE = 0.002
_NEWTON_STEPS = 3
_MAX_STEP = 1.0


def logistic(logits: FloatArray) -> FloatArray:
    """Compute 1 / (1 + exp(-x)) without overflow."""
    rates: FloatArray = 0.5 * (1 + np.tanh(0.5 * logits))
    return rates


def logit(rates: FloatArray) -> FloatArray:
    """Compute log(p / (1 - p)) of rates clipped to [MIN_RATE, 1 - MIN_RATE]."""
    p = np.clip(rates, MIN_RATE, 1 - MIN_RATE)
    logits: FloatArray = np.log(p) - np.log1p(-p)
    return logits


class OnlineLogistic:
    """Logistic regression on a stream of batches, with decay towards the initial prior.

    Recursive Laplace approximation: after a batch the posterior of the weights is normal, with its mean at the maximum
    (three Newton steps from the prior mean) and the curvature there added to the precision. It is the prior of the next
    batch, after it is mixed with the initial prior: precision = d * precision + (1 - d) * ridge, with discount d.

    Memory is independent of the length of the stream: weights ``[F]`` and a precision ``[F, F]``.
    """

    def __init__(self, prior_F: FloatArray, ridge_F: FloatArray, discount: float) -> None:
        """Start from the prior.

        Args:
            prior_F: mean of the initial prior of the weights, ``[F]``.
            ridge_F: precision of the initial prior, ``[F]``, positive.
            discount: factor of the precision after each batch, in (0, 1]; 1 means no decay.
        """
        self.prior_F, self.ridge_F, self.discount = prior_F, ridge_F, discount
        self.weights_F: FloatArray = prior_F.copy()
        self.precision_F_F: FloatArray = np.diag(ridge_F)

    def logits(self, features_P_F: FloatArray) -> FloatArray:
        """Predict log odds of success, ``[P]``."""
        found: FloatArray = features_P_F @ self.weights_F
        return found

    def learn(self, features_P_F: FloatArray, successes_P: FloatArray, attempts_P: FloatArray) -> None:
        """Update the weights and their precision with a batch of binomial outcomes (counts may be fractional)."""
        decayed = self.discount * self.precision_F_F
        precision: FloatArray = decayed + (1 - self.discount) * np.diag(self.ridge_F)
        weighted_sum = decayed @ self.weights_F + (1 - self.discount) * self.ridge_F * self.prior_F
        prior = np.asarray(np.linalg.solve(precision, weighted_sum), dtype=np.float64)
        weights = prior
        curvature = np.zeros_like(precision)
        for _ in range(_NEWTON_STEPS):
            rates = logistic(features_P_F @ weights)
            gradient = features_P_F.T @ (successes_P - attempts_P * rates) - precision @ (weights - prior)
            variance = np.maximum(attempts_P * rates * (1 - rates), 1e-6)
            curvature = (features_P_F * variance[:, None]).T @ features_P_F
            step = np.asarray(np.linalg.solve(precision + curvature, gradient), dtype=np.float64)
            weights = weights + np.clip(step, -_MAX_STEP, _MAX_STEP)
        self.weights_F, self.precision_F_F = weights, precision + curvature

    def state_dict(self) -> dict[str, FloatArray]:
        """Return copies of the weights and their precision."""
        return {"weights": self.weights_F.copy(), "precision": self.precision_F_F.copy()}


class Concentration:
    """Estimate the pseudo-count (concentration) of Beta beliefs from the deviations of outcomes from forecasts.

    For each of four levels of evidence, the estimate is the pseudo-count on a grid that maximises the beta-binomial
    likelihood of the outcomes so far, decayed, times a prior. A pseudo-count of 4 is the uncertainty after 4 rollouts.

    Attributes:
        record_L_G: decayed log likelihood by level of evidence and pseudo-count, ``[L, G]``.
    """

    # Pseudo-counts, in rollouts.
    GRID = np.array([0.5, 1.0, 2.0, 3.0, 4.5, 7.0, 11.0, 16.0, 32.0, 64.0, 128.0])
    # Bounds between the levels of evidence, a share in [0, 1): n / (n + 4) for n rollouts of the prompt.
    EDGES = np.array([0.15, 0.45, 0.7])
    # Log prior: log-normal around 4 with a standard deviation of 1. It decides for levels without outcomes.
    PRIOR = -0.5 * np.log(GRID / 4) ** 2

    def __init__(self, discount: float) -> None:
        """Start without outcomes; ``discount`` is the factor of the log likelihood after each batch."""
        self.discount = discount
        self.record_L_G = np.zeros((self.EDGES.size + 1, self.GRID.size))

    def pseudo_count(self, evidence_P: FloatArray) -> FloatArray:
        """Estimate the pseudo-counts of beliefs with this evidence (a share in [0, 1)), ``[P]``."""
        best_L = np.argmax(self.record_L_G + self.PRIOR, axis=1)
        pseudo_count_P: FloatArray = self.GRID[best_L[np.digitize(evidence_P, self.EDGES)]]
        return pseudo_count_P

    def learn(self, evidence_P: FloatArray, rates_P: FloatArray, successes_P: IntArray, attempts_P: IntArray) -> None:
        """Add the log likelihood of a batch of outcomes under every pseudo-count."""
        self.record_L_G *= self.discount
        alpha_P_G = rates_P[:, None] * self.GRID
        likelihood = beta_binomial_log_likelihood(alpha_P_G, self.GRID - alpha_P_G, successes_P, attempts_P)
        np.add.at(self.record_L_G, np.digitize(evidence_P, self.EDGES), likelihood)


def beta_binomial_log_likelihood(
    alpha_P_G: FloatArray, beta_P_G: FloatArray, successes_P: IntArray, attempts_P: IntArray
) -> FloatArray:
    """Compute log B(a + k, b + n - k) - log B(a, b), ``[P, G]``.

    This is the log likelihood of k successes in n attempts, in a given order, under Beta(a, b).
    """
    successes_P_1, attempts_P_1 = successes_P[:, None], attempts_P[:, None]
    after = _log_beta(alpha_P_G + successes_P_1, beta_P_G + attempts_P_1 - successes_P_1)
    return after - _log_beta(alpha_P_G, beta_P_G)


def _log_beta(alpha: FloatArray, beta: FloatArray) -> FloatArray:
    return _log_gamma(alpha) + _log_gamma(beta) - _log_gamma(alpha + beta)


def _log_gamma(x: FloatArray) -> FloatArray:
    """Compute log Gamma(x) for x > 0 to about 1e-9: Stirling's series at x + 5, then the recurrence down to x."""
    shifted = x + 5
    series = (1 / 12 - (1 / 360 - 1 / (1260 * shifted**2)) / shifted**2) / shifted
    stirling = (shifted - 0.5) * np.log(shifted) - shifted + 0.5 * np.log(2 * np.pi) + series
    found: FloatArray = stirling - np.log(x * (x + 1) * (x + 2) * (x + 3) * (x + 4))
    return found
