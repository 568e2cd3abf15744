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
    for kind in ("runs", "looks"):
        assert made[kind].keys() == golden[kind].keys()
        for rule, run in golden[kind].items():
            for step, expected in zip(made[kind][rule]["steps"], run["steps"], strict=True):
                assert step.keys() == expected.keys()
                for exact in ("prompts", "counts", "rewards", "log_probs"):
                    assert step.get(exact) == expected.get(exact), "run make_same_plans.py if this is meant"
                for name in ("rates", "pseudo_counts"):
                    np.testing.assert_allclose(step[name], expected[name], rtol=1e-6)
            for name, values in run["beliefs"].items():
                np.testing.assert_allclose(made[kind][rule]["beliefs"][name], values, rtol=1e-6)
    assert any(len(set(step["counts"])) > 1 for step in golden["runs"]["beta"]["steps"])
    pools = [golden["runs"]["pool"], *golden["looks"].values()]
    for run in pools:
        assert any(0 in step["counts"] for step in run["steps"]), "every candidate was chosen"
    assert len({str([step["counts"] for step in run["steps"]]) for run in pools}) == 4, "a look says nothing"
    asked = [each for run in golden["looks"].values() for step in run["steps"] for each in step.get("log_probs", ())]
    assert None in asked, "no look fails"
