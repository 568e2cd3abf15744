"""A pytest plugin: puts our trainer and config in place of TRL's, and records how each test ended.

`KNAPSACK_SUITE` says which: ``stock`` (nothing is replaced), ``uniform`` or ``default``; `KNAPSACK_SUITE_OUT` names the
file of outcomes, one JSON line a test.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trl

WHICH = os.environ["KNAPSACK_SUITE"]

if WHICH != "stock":
    from knapsack_rl.config import RuleName
    from knapsack_rl.trl import KnapsackGRPOConfig, KnapsackGRPOTrainer

    @dataclass
    class UniformConfig(KnapsackGRPOConfig):
        """Ours, whose rule is stock GRPO's."""

        rule: RuleName = "uniform"

    trl.GRPOTrainer = KnapsackGRPOTrainer
    trl.GRPOConfig = UniformConfig if WHICH == "uniform" else KnapsackGRPOConfig


def pytest_runtest_logreport(report: Any) -> None:
    """Write one line for a test that ran, or that failed or was skipped before it ran."""
    if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
        message = str(report.longrepr.reprcrash.message) if hasattr(report.longrepr, "reprcrash") else ""
        line = {"test": report.nodeid, "outcome": report.outcome, "message": message.split("\n")[0][:300]}
        with Path(os.environ["KNAPSACK_SUITE_OUT"]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
