"""Write rliable.json: what the package ``rliable`` says about given scores, for tests/test_statistics.py.

It needs older versions of its dependencies than this project's environment has. In an environment of its own, with
``pip install rliable==1.2.0 "pandas<3"``: ``python tests/golden/make_rliable.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from rliable import library, metrics

PATH = Path(__file__).with_name("rliable.json")
REPLICATIONS = 20_000


def scores() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Two rules, 5 and 7 seeds by 3 regimes, with ties; regimes so far apart that intervals of seeds pooled differ."""
    random, regimes = np.random.default_rng(0), np.array([0.0, 2.0, 5.0])
    x, y = random.normal(0.5, 1, (5, 3)) + regimes, random.normal(0, 1, (7, 3)) + regimes
    return x.round(1), y.round(1)


def main() -> None:
    x, y = scores()
    np.random.seed(0)  # noqa: NPY002  # rliable draws from here, whatever its argument random_state says
    _, iqm = library.get_interval_estimates({"x": x}, lambda s: np.array([metrics.aggregate_iqm(s)]), reps=REPLICATIONS)
    _, better = library.get_interval_estimates({"x,y": (x, y)}, metrics.probability_of_improvement, reps=REPLICATIONS)
    found = {
        "x": x.tolist(),
        "y": y.tolist(),
        "iqm": float(metrics.aggregate_iqm(x)),
        "iqm of y": float(metrics.aggregate_iqm(y)),
        "iqm interval": iqm["x"].ravel().tolist(),
        "probability of improvement": float(metrics.probability_of_improvement(x, y)),
        "probability of improvement interval": better["x,y"].ravel().tolist(),
    }
    PATH.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
