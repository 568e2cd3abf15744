"""Every adapter makes the core's plans: the file they must all reproduce is what the core makes.

verl and Tinker reproduce it in environments of their own: tests/verl/test_verl_hooks.py, tests/tinker.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
sys.path.insert(0, str(GOLDEN))


def test_the_golden_file_is_what_the_core_plans() -> None:
    import make_same_plans

    made = json.loads(json.dumps(make_same_plans.same_plans()))
    golden = json.loads((GOLDEN / "same_plans.json").read_text(encoding="utf-8"))
    assert made["settings"] == golden["settings"]
    assert made["prompts"] == golden["prompts"]
    assert made["runs"].keys() == golden["runs"].keys()
    for rule, run in golden["runs"].items():
        for step, expected in zip(made["runs"][rule]["steps"], run["steps"], strict=True):
            for exact in ("prompts", "counts", "rewards"):
                assert step[exact] == expected[exact], "run tests/golden/make_same_plans.py if this is meant"
            for name in ("rates", "pseudo_counts"):
                np.testing.assert_allclose(step[name], expected[name], rtol=1e-6)
        for name, values in run["beliefs"].items():
            np.testing.assert_allclose(made["runs"][rule]["beliefs"][name], values, rtol=1e-6)
    assert any(len(set(step["counts"])) > 1 for step in golden["runs"]["beta"]["steps"])
    for name in ("pool", "pool and texts"):
        assert any(0 in step["counts"] for step in golden["runs"][name]["steps"]), "every candidate was chosen"
    texts, none = (golden["runs"][name]["steps"] for name in ("pool and texts", "pool"))
    assert [step["counts"] for step in texts] != [step["counts"] for step in none], "texts say nothing"
