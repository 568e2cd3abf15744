"""Online learners for calibrated forecasts: a regression for rates, a likelihood for pseudo-counts, means of inputs.

All decay: the weight of a batch falls exponentially with the number of later batches, because the policy changes.
"""

from __future__ import annotations

from collections.abc import Sequence

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

    def leverage(self, features_P_F: FloatArray) -> FloatArray:
        """Squared length of each prompt's inputs in the inverse precision, phi' H^-1 phi, ``[P]``."""
        found: FloatArray = (features_P_F * np.linalg.solve(self.precision_F_F, features_P_F.T).T).sum(axis=1)
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

    def without(self, inputs: Sequence[int]) -> OnlineLogistic:
        """Return this regression without some inputs: the posterior of the other weights, given that these are 0.

        It is what the other inputs alone would have learned, as far as the log likelihood is quadratic.

        Args:
            inputs: positions of the inputs to leave out.
        """
        dropped = np.array(inputs)
        kept = np.setdiff1d(np.arange(self.weights_F.size), dropped)
        found = OnlineLogistic(self.prior_F[kept], self.ridge_F[kept], self.discount)
        found.precision_F_F = self.precision_F_F[np.ix_(kept, kept)]
        across = self.precision_F_F[np.ix_(kept, dropped)] @ self.weights_F[dropped]
        found.weights_F = self.weights_F[kept] + np.linalg.solve(found.precision_F_F, across)
        return found

    def state_dict(self) -> dict[str, FloatArray]:
        """Return copies of the weights and their precision."""
        return {"weights": self.weights_F.copy(), "precision": self.precision_F_F.copy()}


def normalised_maximum_likelihood(logits_P: FloatArray, leverage_P: FloatArray) -> FloatArray:
    """Rates under the conditional normalised maximum likelihood of a logistic regression, ``[P]``.

    The regression is fitted once with the prompt counted as a success and once as a failure, each by one Newton step;
    the two likelihoods, normalised, are the rate (MURAL, arXiv 2107.07184, in closed form):

        p = s(z + k q) / (s(z + k q) + s(-z + k p)),   k = h / (1 + p q h),   p = s(z), q = 1 - p

    It is p where the regression knows the prompt (h = 0), and 1/2 where nothing like it was seen.

    Args:
        logits_P: log odds of success z, ``[P]``.
        leverage_P: h = phi' H^-1 phi of the prompt's inputs under the regression's precision H, 0 or more, ``[P]``.
    """
    p = logistic(logits_P)
    k = leverage_P / (1 + p * (1 - p) * leverage_P)
    success, failure = logistic(logits_P + k * (1 - p)), logistic(k * p - logits_P)
    rates: FloatArray = success / (success + failure)
    return rates


class RunningMeans:
    """Means of inputs by kind of prompt, decayed by batch: an unknown input (NaN) counts as its mean and says nothing.

    Attributes:
        sums_K_F, weights_K_F: decayed sums of known inputs and their numbers, ``[kinds, F]``.
    """

    def __init__(self, kinds: int, discount: float) -> None:
        """Start without inputs; ``discount`` is the factor of the sums after each batch."""
        self.discount = discount
        self.sums_K_F = np.zeros((kinds, 0))
        self.weights_K_F = np.zeros((kinds, 0))

    def filled(self, inputs_P_F: FloatArray, kind_P: IntArray) -> FloatArray:
        """Replace NaN by the mean of the prompt's kind; of all kinds if its own has none; by 0 if no kind has one."""
        unknown_P_F = np.isnan(inputs_P_F)
        if not unknown_P_F.any():
            return inputs_P_F
        means_K_F = np.zeros((len(self.sums_K_F), inputs_P_F.shape[1]))
        if self.sums_K_F.shape[1] == inputs_P_F.shape[1]:
            overall_F = self.sums_K_F.sum(axis=0) / np.maximum(self.weights_K_F.sum(axis=0), np.finfo(float).tiny)
            of_kind_K_F = self.sums_K_F / np.maximum(self.weights_K_F, np.finfo(float).tiny)
            means_K_F = np.where(self.weights_K_F > 0, of_kind_K_F, overall_F)
        found: FloatArray = np.where(unknown_P_F, means_K_F[kind_P], inputs_P_F)
        return found

    def learn(self, inputs_P_F: FloatArray, kind_P: IntArray) -> None:
        """Add a batch; NaN is left out. A number of inputs that changed starts anew."""
        if self.sums_K_F.shape[1] != inputs_P_F.shape[1]:
            self.sums_K_F = self.weights_K_F = np.zeros((len(self.sums_K_F), inputs_P_F.shape[1]))
        known_P_F = ~np.isnan(inputs_P_F)
        of_kind_K_P = (np.arange(len(self.sums_K_F))[:, None] == kind_P).astype(np.float64)
        self.sums_K_F = self.discount * self.sums_K_F + of_kind_K_P @ np.where(known_P_F, inputs_P_F, 0)
        self.weights_K_F = self.discount * self.weights_K_F + of_kind_K_P @ known_P_F

    def state_dict(self) -> dict[str, FloatArray]:
        """Return copies of the sums and their weights."""
        return {"sums": self.sums_K_F.copy(), "weights": self.weights_K_F.copy()}


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
