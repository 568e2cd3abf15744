"""What is done for Unsloth, on stand-ins for its classes; tests/unsloth has the real ones."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from knapsack_rl.trl.unsloth import check_unsloth, keep_unsloth_defaults


@dataclass
class Stock:
    """TRL's config."""

    rate: float = 1.0
    seed: int = 42

    def __post_init__(self) -> None:
        self.checked = dict(vars(self))


@dataclass
class Generated(Stock):
    """Unsloth's, which keeps TRL's fields and has defaults and corrections in its ``__init__``."""

    _unsloth_patched_rl_config = True

    def __init__(self, rate: float = 5.0, seed: int = 3407, **kwargs: Any) -> None:
        super().__init__(rate=min(rate, 9.0), seed=seed, **kwargs)


def ours(base: Any) -> Any:
    @keep_unsloth_defaults
    @dataclass
    class Ours(base):  # type: ignore[misc]
        rule: str = "calibrated"
        pool: int | None = None

    return Ours


@pytest.mark.parametrize("given", [{}, {"rate": 2.0}, {"rate": 20.0, "seed": 1}], ids=str)
def test_the_values_are_those_of_the_base(given: dict[str, Any]) -> None:
    for base in (Stock, Generated):
        made, plain = ours(base)(**given, rule="beta"), base(**given)
        assert {name: getattr(made, name) for name in ("rate", "seed")} == {"rate": plain.rate, "seed": plain.seed}
        assert (made.rule, made.pool) == ("beta", None)
        # Ours are set before the checks of both run.
        assert made.checked == {"rate": plain.rate, "seed": plain.seed, "rule": "beta", "pool": None}
        assert [each.name for each in dataclasses.fields(made)] == ["rate", "seed", "rule", "pool"]


def test_values_by_position_and_unknown_names() -> None:
    made = ours(Generated)(2.0, pool=4)
    assert (made.rate, made.seed, made.pool) == (2.0, 3407, 4)
    with pytest.raises(TypeError, match="poool"):
        ours(Generated)(poool=4)


class UnslothGRPOTrainer:
    pass


class TrainerOfUnsloth(UnslothGRPOTrainer):
    pass


MODEL = SimpleNamespace(for_training=None)


def test_trainers_and_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "unsloth", raising=False)
    monkeypatch.setenv("UNSLOTH_GRPO_LOSS_AGGREGATION", "prompt")
    check_unsloth(object(), MODEL)  # without Unsloth nothing is asked
    monkeypatch.setitem(sys.modules, "unsloth", ModuleType("unsloth"))
    check_unsloth(object(), object())  # TRL's trainer and a model of TRL's
    with pytest.raises(ValueError, match="imported before unsloth: put `import unsloth` above it"):
        check_unsloth(object(), MODEL)
    with pytest.raises(ValueError, match="UNSLOTH_GRPO_LOSS_AGGREGATION=prompt weighs .*: unset it"):
        check_unsloth(TrainerOfUnsloth(), MODEL)
    monkeypatch.setenv("UNSLOTH_GRPO_LOSS_AGGREGATION", "")
    check_unsloth(TrainerOfUnsloth(), MODEL)
    monkeypatch.setenv("UNSLOTH_GRPO_ZERO_VARIANCE_EXCLUDE", "1")
    with pytest.raises(ValueError, match="UNSLOTH_GRPO_ZERO_VARIANCE_EXCLUDE=1 weighs"):
        check_unsloth(TrainerOfUnsloth(), MODEL)
