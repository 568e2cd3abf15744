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
    """Two rules, 5 seeds by 3 regimes, with ties."""
    random = np.random.default_rng(0)
    x, y = random.normal(0.5, 1, (5, 3)).round(1), random.normal(0, 1, (7, 3)).round(1)
    return x, y


def main() -> None:
    x, y = scores()
    state = np.random.RandomState(0)  # what rliable takes
    _, iqm = library.get_interval_estimates(
        {"x": x}, lambda s: np.array([metrics.aggregate_iqm(s)]), reps=REPLICATIONS, random_state=state
    )
    _, better = library.get_interval_estimates(
        {"x,y": (x, y)}, metrics.probability_of_improvement, reps=REPLICATIONS, random_state=state
    )
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
