"""Settings of the ms-swift adapter come from an environment variable or from a file."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from knapsack_rl.swift.settings import VARIABLE, check_options, read_settings, settings_of

ARGS = Namespace(num_generations=8, generation_batch_size=64)
TEMPLATE = Namespace(truncation_strategy="left", sequence_parallel_size=1)


def test_pairs_and_a_file_say_the_same(tmp_path: Path) -> None:
    path = tmp_path / "knapsack.toml"
    path.write_text('rule = "beta"\npool = 2\nhalf_life = 2.5\n', encoding="utf-8")
    expected = {"rule": "beta", "pool": 2, "half_life": 2.5}
    assert read_settings(" rule=beta, pool=2 ,half_life=2.5,") == read_settings(str(path)) == expected
    assert read_settings("") == {}


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "rule=paper")
    assert read_settings() == {"rule": "paper"}


@pytest.mark.parametrize("text", ["no/such/file.toml", "average=4", "budget=adaptive", "rule beta", "="])
def test_what_is_no_setting_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=VARIABLE):
        read_settings(text)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "knapsack.toml"
    path.write_text("rule = beta", encoding="utf-8")
    with pytest.raises(ValueError, match="TOML"):
        read_settings(str(path))


@pytest.mark.parametrize(
    ("given", "prompts", "pool"),
    [({}, 1000, 4), ({}, 20, 2), ({}, 3, 1), ({}, None, 1), ({"pool": 2}, 3, 2), ({"rule": "paper"}, 1000, 1)],
)
def test_the_default_pool_is_what_the_data_can_fill(given: dict[str, Any], prompts: int | None, pool: int) -> None:
    allocation, own = settings_of(ARGS, given, prompts)
    assert allocation.pool == pool
    assert allocation.average == 8
    assert (own["features"] is None) == (given.get("rule") == "paper")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pool": 9}, "at most num_generations"),
        ({"features": "text"}, "features is 'text'"),
        ({"pool": "x"}, "pool is 'x'"),
    ],
)
def test_bad_values_are_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(ARGS, given, 1000)


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
