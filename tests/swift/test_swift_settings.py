"""Settings of the ms-swift adapter come from an environment variable or from a file."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from knapsack_rl.swift.settings import OWN, VARIABLE, allocation_of, check_options, read_settings

ARGS = Namespace(num_generations=8, generation_batch_size=64, process_index=0)
TEMPLATE = Namespace(truncation_strategy="left", sequence_parallel_size=1)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        monkeypatch.setenv(VARIABLE, text)
        return read_settings()

    return read


def test_pairs_and_a_file_say_the_same(tmp_path: Path, settings: Callable[[str], Any]) -> None:
    path = tmp_path / "knapsack.toml"
    path.write_text('rule = "beta"\npool = 2\nhalf_life = 2.5\n', encoding="utf-8")
    expected = {"rule": "beta", "pool": 2, "half_life": 2.5}
    assert settings(" rule=beta, pool=2 ,half_life=2.5,") == settings(str(path)) == (expected, OWN)


def test_nothing_need_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_settings() == ({}, OWN)


def test_none_and_an_empty_text_are_none(settings: Callable[[str], Any]) -> None:
    _, own = settings("rule=paper,features=none,trace_file=")
    assert own == dict.fromkeys(OWN)


@pytest.mark.parametrize(
    "text", ["no/such/file.toml", "average=4", "budget=adaptive", "features=text", "rule beta", "="]
)
def test_what_is_no_setting_is_named(settings: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError, match=VARIABLE):
        settings(text)


def test_a_damaged_file_is_named(tmp_path: Path, settings: Callable[[str], Any]) -> None:
    path = tmp_path / "knapsack.toml"
    path.write_text("rule = beta", encoding="utf-8")
    with pytest.raises(ValueError, match="TOML"):
        settings(str(path))


@pytest.mark.parametrize(
    ("given", "prompts", "pool"),
    [({}, 1000, 4), ({}, 20, 2), ({}, 3, 1), ({}, None, 1), ({"pool": 2}, 3, 2), ({"rule": "paper"}, 1000, 1)],
)
def test_the_default_pool_is_what_the_data_can_fill(
    given: dict[str, Any], prompts: int | None, pool: int, caplog: pytest.LogCaptureFixture
) -> None:
    allocation = allocation_of(ARGS, given, prompts)
    assert allocation.pool == pool
    assert (f"pool={pool} instead of 4" in caplog.text) == (not given and pool < 4)
    assert allocation.average == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pool": 9}, "at most num_generations"),
        ({"pool": "x"}, "pool is 'x'"),
    ],
)
def test_bad_values_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocation_of(ARGS, given, 1000)


@pytest.mark.parametrize(
    ("name", "value"),
    [("dynamic_sample", True), ("async_generate", True), ("loss_type", "real"), ("scale_rewards", "gdpo")],
)
def test_options_that_reshape_groups_are_refused(name: str, value: Any) -> None:
    check_options(Namespace(dynamic_sample=False, loss_type="grpo"), TEMPLATE)
    with pytest.raises(ValueError, match=f"--{name}"):
        check_options(Namespace(**{name: value}), TEMPLATE)


@pytest.mark.parametrize("changes", [{"truncation_strategy": "raise"}, {"sequence_parallel_size": 2}])
def test_templates_that_replace_or_repeat_rows_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"--truncation_strategy|--sequence_parallel_size"):
        check_options(Namespace(), Namespace(**{**vars(TEMPLATE), **changes}))
