"""The records of a trace, and their form as lines of JSON, which is checked value by value when it is read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from knapsack_rl.files import parse_json, plain_json
from knapsack_rl.notation import FloatArray
from knapsack_rl.outcomes import Outcomes
from knapsack_rl.plan import Plan
from knapsack_rl.trace.looks import StepFeatures

VERSION = 2
# How the writer begins a file; tells a first line that a kill cut off from a file that is no trace.
START = b'{"kind":"run"'
# Counts are at most this, so that no sum of them overflows; other whole numbers fit into 64 bits.
MOST = 2**31 - 1
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class RunStart:
    """The first record: ``fields`` holds engine, rule, seed, started, settings and any others that were given."""

    fields: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Step:
    """One generation step.

    Attributes:
        plan, outcomes: the decision and its rollouts, over the same prompts in the same order.
        optimizer_step: optimizer steps done when the rollouts were made.
        seconds: wall-clock times by name: ``step``, and of it ``overhead``, the library's own (looks, plan, learning,
            record), where the writer measured them.
        samples: a few completions, each ``{"id", "completion", "reward"}``.
        texts: prompt texts by id, of prompts that appear for the first time.
        log_odds_P: log odds of the most probable next token that the plan was made with, ``[P]``, NaN where unknown;
            None if there were none.
        features: rows of features of its prompts that are new in the file; None if the plan was made without features,
            or an earlier version wrote the record.
    """

    plan: Plan
    outcomes: Outcomes
    optimizer_step: int
    seconds: Mapping[str, float]
    samples: Sequence[Mapping[str, Any]] = ()
    texts: Mapping[str, str] | None = None
    log_odds_P: FloatArray | None = None
    features: StepFeatures | None = None

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
class Kept:
    """Kept successes after generation step ``step``, from trainers that keep them.

    ``metrics`` has their number (``kept``), how many were given to groups that failed (``kept_used``), and their mean
    age in steps.
    """

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Resume:
    """The run continued after ``step`` generation steps; records of later ones are superseded."""

    step: int


@dataclass(frozen=True)
class End:
    """The run ended for ``reason``, ``seconds`` after it was (last) started."""

    reason: str
    seconds: float


@dataclass(frozen=True)
class Lost:
    """Records that could not be written before this one: their number, the steps they are of, and the first reason."""

    records: int
    steps: Sequence[int]
    reason: str


Record: TypeAlias = RunStart | Step | Evaluation | Kept | Resume | Lost | End


# The records whose fields are written as they are, by kind.
_PLAIN: dict[str, type[Evaluation | Kept | Resume | Lost | End]] = {
    "eval": Evaluation, "kept": Kept, "resume": Resume, "lost": Lost, "end": End,
}  # fmt: skip
# Arrays of a plan by their names in the file.
_PLAN_ARRAYS: dict[str, tuple[str, Any]] = {
    "counts": ("counts_P", np.int64), "low": ("low_P", np.int64), "high": ("high_P", np.int64),
    "rates": ("success_rates_P", np.float64), "pseudo_counts": ("pseudo_count_P", np.float64),
    "seen": ("seen_P", np.bool_),
}  # fmt: skip


def encode(record: Record) -> bytes:
    """The record as one line of ASCII, newline included."""
    match record:
        case RunStart(given):
            fields: dict[str, object] = {"kind": "run", "version": VERSION, **given}
        case Step(plan, outcomes):
            fields = {
                "kind": "step",
                "step": plan.step,
                "optimizer_step": record.optimizer_step,
                "budget": plan.budget,
                "price": plan.price,
                "ids": plan.prompt_ids,
                **{key: getattr(plan, name) for key, (name, _) in _PLAN_ARRAYS.items()},
                "got": outcomes.counts_P,
                "rewards": outcomes.rewards_PG,
                "tokens": outcomes.tokens_PG,
                "threshold": outcomes.success_threshold,
                "seconds": record.seconds,
                "texts": record.texts or {},
                "samples": record.samples,
                "log_odds": record.log_odds_P,
                "features": None if record.features is None else record.features.to_json(),
            }
        case _:
            fields = {"kind": next(kind for kind, cls in _PLAIN.items() if isinstance(record, cls)), **vars(record)}
    return json.dumps(plain_json(fields), allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def decode(line: bytes) -> Record | None:
    """The record of a line; None for a kind that this version does not know.

    Raises:
        ValueError: not JSON, not a record, a field that is missing or of a wrong type or range, or another version.
    """
    try:
        given = parse_json(line)
    except UnicodeDecodeError:
        raise ValueError("not a record of a trace: not UTF-8 text") from None
    if not isinstance(given, dict) or not isinstance(given.get("kind"), str):
        raise ValueError("not a record of a trace")
    kind, fields = given.pop("kind"), _Fields(given)
    if kind == "run":
        if fields.value("version") != VERSION:
            shown = repr(given["version"])[:20]
            raise ValueError(
                f"version {shown} of the format, and this library reads {VERSION}: read it with a newer release"
            )
        settings = fields.mapping("settings", optional=True)
        return RunStart({**given, **({} if settings is None else {"settings": settings})})
    if kind == "step":
        return _step(fields)
    if kind == "eval":
        rates = fields.numbers("rates") if given.get("rates") is not None else None
        return Evaluation(fields.whole("step"), fields.whole("rollouts"), fields.numbers("metrics"), rates)
    if kind in ("kept", "resume"):
        step = fields.whole("step")
        return Kept(step, fields.numbers("metrics")) if kind == "kept" else Resume(step)
    if kind == "lost":
        steps = fields.array("steps", (int,), np.int64, 0, LARGEST).tolist()
        return Lost(fields.whole("records"), steps, fields.text("reason"))
    return End(fields.text("reason"), fields.number("seconds")) if kind == "end" else None


def _step(fields: _Fields) -> Step:
    ids, step = tuple(fields.texts("ids")), fields.whole("step")
    real, whole = (int, float, type(None)), (int,)
    pseudo_count_P = fields.array("pseudo_counts", real, np.float64, 0, math.inf)
    pseudo_count_P[np.isnan(pseudo_count_P)] = np.inf
    plan = Plan(
        step=step,
        prompt_ids=ids,
        counts_P=fields.array("counts", whole, np.int64, 0, MOST),
        budget=fields.whole("budget"),
        low_P=fields.array("low", whole, np.int64, 0, MOST),
        high_P=fields.array("high", whole, np.int64, 0, LARGEST),
        success_rates_P=fields.array("rates", real, np.float64, 0, 1),
        pseudo_count_P=pseudo_count_P,
        seen_P=fields.array("seen", (bool,), np.bool_, 0, 1),
        price=fields.number("price"),
    )
    outcomes = Outcomes(
        step=step,
        prompt_ids=ids,
        counts_P=fields.array("got", whole, np.int64, 0, MOST),
        rewards_PG=fields.array("rewards", real, np.float64, -math.inf, math.inf),
        tokens_PG=None if fields.value("tokens") is None else fields.array("tokens", whole, np.int64, -1, MOST),
        success_threshold=fields.number("threshold"),
    )
    texts = fields.mapping("texts")
    if texts and not all(isinstance(text, str) for text in texts.values()):
        raise fields.wrong("texts", "texts by prompt id")
    seconds = fields.numbers("seconds")
    log_odds_P = None
    if fields.given.get("log_odds") is not None:  # absent in files of earlier versions
        log_odds_P = fields.array("log_odds", real, np.float64, -math.inf, math.inf)
        if log_odds_P.shape != plan.counts_P.shape:
            raise fields.wrong("log_odds", f"a list of {plan.counts_P.size} numbers, one for each prompt")
    features = None
    if fields.given.get("features") is not None:
        try:
            features = StepFeatures.from_json(fields.given["features"], len(ids))
        except ValueError as error:
            raise fields.wrong("features", f"rows of features ({error})") from error
    optimizer_step = fields.whole("optimizer_step")
    return Step(plan, outcomes, optimizer_step, seconds, _samples(fields), texts, log_odds_P, features)


def _samples(fields: _Fields) -> list[dict[str, Any]]:
    samples = fields.value("samples")
    texts, scalar = ("id", "completion"), str | int | float | None
    for sample in samples if isinstance(samples, list) else [None]:
        if not isinstance(sample, dict) or not all(isinstance(sample.get(name), str) for name in texts):
            raise fields.wrong("samples", "objects with an id, a completion and a reward")
        if not isinstance(sample.setdefault("reward", None), scalar):
            raise fields.wrong("samples", "objects whose reward is a number")
    return list(samples)


class _Fields:
    """The fields of a record; each is asked for by its type, and a wrong one is an error that names it."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given

    def wrong(self, name: str, expected: str) -> ValueError:
        """The error for a field that is not what it should be; long values are cut."""
        if name not in self.given:
            return ValueError(f"a record without '{name}'")
        try:
            shown = json.dumps(self.given[name])
        except (ValueError, RecursionError):  # an integer of thousands of digits
            shown = "..."
        return ValueError(f"'{name}' is {shown if len(shown) <= 60 else shown[:57] + '...'}, and must be {expected}")

    def value(self, name: str) -> Any:
        if name not in self.given:
            raise self.wrong(name, "")
        return self.given[name]

    def whole(self, name: str) -> int:
        value = self.value(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST:
            raise self.wrong(name, "a whole number from 0")
        return value

    def number(self, name: str) -> float:
        """A number; null is NaN."""
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise self.wrong(name, "a number")
        found: float = self._checked(name, lambda: _real(value))
        return found

    def text(self, name: str) -> str:
        if not isinstance(self.value(name), str):
            raise self.wrong(name, "text")
        return str(self.given[name])

    def texts(self, name: str) -> list[str]:
        value = self.value(name)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.wrong(name, "a list of texts")
        return value

    def mapping(self, name: str, optional: bool = False) -> dict[str, Any] | None:
        value = self.given.get(name) if optional else self.value(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, "an object with named values")
        return value

    def numbers(self, name: str) -> dict[str, float]:
        value = self.mapping(name) or {}
        if any(isinstance(each, bool) or not isinstance(each, int | float | None) for each in value.values()):
            raise self.wrong(name, "numbers by name")
        found: dict[str, float] = self._checked(name, lambda: {key: _real(each) for key, each in value.items()})
        return found

    def array(self, name: str, types: Collection[type], dtype: Any, least: float, most: float) -> NDArray[Any]:
        """A list of values of these types, each in the range or NaN, as an array."""
        value = self.value(name)
        kinds = "truth values" if types == (bool,) else "whole numbers" if types == (int,) else "numbers"
        if not isinstance(value, list) or not set(map(type, value)) <= set(types):
            raise self.wrong(name, f"a list of {kinds}")
        found: NDArray[Any] = self._checked(name, lambda: np.array(value, dtype))  # numpy reads None as NaN
        if ((found < least) | (found > most)).any():
            raise self.wrong(name, f"a list of {kinds} from {least} to {most}")
        return found

    def _checked(self, name: str, convert: Callable[[], Any]) -> Any:
        try:
            return convert()
        except OverflowError:
            raise self.wrong(name, "smaller in magnitude") from None


def _real(value: float | None) -> float:
    return math.nan if value is None else float(value)
