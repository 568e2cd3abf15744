"""The records of a trace, and each as one line of strict JSON.

| kind   | written              | holds                                                                                |
|--------|----------------------|--------------------------------------------------------------------------------------|
| run    | first                | version, library, engine, method, seed, started, settings                            |
| step   | per generation step  | the plan (ids, counts, low, high, rates, strength, seen, budget, price), what came   |
|        |                      | back (got, rewards, tokens, threshold), seconds, texts of new prompts, a few samples |
| eval   | per evaluation       | step, rollouts spent so far, metrics, and exact success rates by prompt where known  |
| resume | when a run goes on   | step: what was recorded for it and later is superseded (of evals: only later)        |
| end    | last                 | reason ("finished" or "interrupted"), seconds                                        |

NaN is written as null, and so is an infinite strength (a point estimate).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan

VERSION = 1


@dataclass(frozen=True)
class RunStart:
    """The first record: ``fields`` holds engine, method, seed, started, settings and what else was given."""

    fields: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Step:
    """One generation step.

    Attributes:
        plan, outcomes: the decision and what came of it, over the same prompts in the same order.
        optimizer_step: optimizer steps done when the rollouts were made.
        seconds: wall-clock times by name, at least ``allocate`` and ``step`` where the writer measured them.
        samples: a few completions, each ``{"id", "completion", "reward"}``.
        texts: prompt texts by id, of prompts that appear for the first time.
    """

    plan: Plan
    outcomes: Outcomes
    optimizer_step: int
    seconds: Mapping[str, float]
    samples: Sequence[Mapping[str, Any]] = ()
    texts: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.outcomes.prompt_ids != self.plan.prompt_ids:
            raise ValueError("outcomes must list the plan's prompts in the plan's order (0 rows where none came back)")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation, after ``step`` generation steps and ``rollouts`` rollouts; ``rates`` are exact, by id."""

    step: int
    rollouts: int
    metrics: Mapping[str, float]
    rates: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Resume:
    """The run went on from ``step`` generation steps; what was recorded beyond that is superseded."""

    step: int


@dataclass(frozen=True)
class End:
    """The run ended for ``reason``, ``seconds`` after it was (last) started."""

    reason: str
    seconds: float


Record: TypeAlias = RunStart | Step | Evaluation | Resume | End


def encode(record: Record) -> bytes:
    """The record as one line, newline included, in ASCII: any text survives any reader."""
    return json.dumps(strict(_fields(record)), allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> Record | None:
    """The record of a line; None for a kind this version does not know.

    Raises:
        ValueError: not JSON, not a record, or written by a newer version. The caller knows the file and the line.
    """
    fields = json.loads(line)
    if not isinstance(fields, dict) or "kind" not in fields:
        raise ValueError("not a record of a trace")
    try:
        match fields.pop("kind"):
            case "run":
                if fields["version"] > VERSION:
                    raise ValueError(f"version {fields['version']} of the format is newer than this library reads")
                return RunStart(fields)
            case "step":
                return _step(fields)
            case "eval":
                rates = _floats(fields["rates"]) if "rates" in fields else None
                return Evaluation(fields["step"], fields["rollouts"], _floats(fields["metrics"]), rates)
            case "resume":
                return Resume(fields["step"])
            case "end":
                return End(fields["reason"], fields["seconds"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"a record without, or with a wrong, {error}") from error
    return None


def strict(value: object) -> object:
    """The value in plain JSON types: numbers that JSON lacks become None, what it does not know its text."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [strict(item) for item in value]
    return str(value)


def _fields(record: Record) -> dict[str, object]:
    match record:
        case RunStart(fields):
            return {"kind": "run", "version": VERSION, **fields}
        case Step():
            return _step_fields(record)
        case Evaluation(step, rollouts, metrics, rates):
            fields = {"kind": "eval", "step": step, "rollouts": rollouts, "metrics": metrics}
            return fields if rates is None else {**fields, "rates": rates}
        case Resume(step):
            return {"kind": "resume", "step": step}
        case End(reason, seconds):
            return {"kind": "end", "reason": reason, "seconds": seconds}


def _step_fields(record: Step) -> dict[str, object]:
    plan, outcomes = record.plan, record.outcomes
    return {
        "kind": "step",
        "step": plan.step,
        "optimizer_step": record.optimizer_step,
        "budget": plan.budget,
        "price": plan.price,
        "ids": plan.prompt_ids,
        "counts": plan.counts_P,
        "low": plan.low_P,
        "high": plan.high_P,
        "rates": plan.success_rates_P,
        "strength": plan.strength_P,
        "seen": plan.seen_P,
        "got": outcomes.counts_P,
        "rewards": outcomes.rewards_PG,
        "tokens": outcomes.tokens_PG,
        "threshold": outcomes.success_threshold,
        "seconds": record.seconds,
        "texts": record.texts or {},
        "samples": record.samples,
    }


def _step(fields: dict[str, Any]) -> Step:
    ids = tuple(fields["ids"])
    strength_P = _array(fields["strength"])
    plan = Plan(
        step=fields["step"],
        prompt_ids=ids,
        counts_P=np.array(fields["counts"], dtype=np.int64),
        budget=fields["budget"],
        low_P=np.array(fields["low"], dtype=np.int64),
        high_P=np.array(fields["high"], dtype=np.int64),
        success_rates_P=_array(fields["rates"]),
        strength_P=np.where(np.isnan(strength_P), np.inf, strength_P),
        seen_P=np.array(fields["seen"], dtype=np.bool_),
        price=_number(fields["price"]),
    )
    tokens = fields["tokens"]
    outcomes = Outcomes(
        step=fields["step"],
        prompt_ids=ids,
        counts_P=np.array(fields["got"], dtype=np.int64),
        rewards_PG=_array(fields["rewards"]),
        tokens_PG=None if tokens is None else np.array(tokens, dtype=np.int64),
        success_threshold=fields["threshold"],
    )
    samples, texts = fields["samples"], fields["texts"]
    return Step(plan, outcomes, fields["optimizer_step"], _floats(fields["seconds"]), samples, texts)


def _array(values: list[float | None]) -> FloatArray:
    return np.array(values, dtype=np.float64)  # numpy reads None as NaN


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _floats(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: _number(value) for name, value in values.items()}
