"""TRL's own arguments from flags and YAML, and every way to get them wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("trl")

from knapsack_rl.tasks import TaskError
from knapsack_rl.train.command import read_yaml, trainer_fields
from knapsack_rl.train.job import Job
from knapsack_rl.train.preflight import prepare


def test_only_what_was_given_counts() -> None:
    given = trainer_fields(["--learning_rate", "1e-3", "--max-completion-length", "16", "--bf16", "False"], {})
    assert given == {"learning_rate": 1e-3, "max_completion_length": 16, "bf16": False}
    assert trainer_fields([], {}) == {}
    assert trainer_fields(["--report_to", "tensorboard,wandb"], {}) == {"report_to": ["tensorboard", "wandb"]}


def test_flags_win_over_the_file_and_both_have_trls_types(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(
        "learning_rate: 1e-5\nloss-type: grpo\nreward_weights: [1.0]\nmodel_init_kwargs: {dtype: float32}\n"
    )
    given = trainer_fields(["--loss_type", "dapo"], read_yaml(file))
    assert given["learning_rate"] == 1e-5  # YAML reads 1e-5 as a text
    assert given["loss_type"] == "dapo"
    assert given["reward_weights"] == [1.0]
    assert given["model_init_kwargs"] == {"dtype": "float32"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 1),
        ("learning_rate", 1e-5),
        ("save_total_limit", 7),
        ("dataloader_num_workers", 0),
        ("bf16", False),
        ("use_cpu", True),
        ("warmup_steps", 0.1),
        ("reward_weights", [1.0, 2.0]),
        ("gradient_checkpointing_kwargs", {"use_reentrant": True}),
    ],
)
def test_values_of_the_file_are_those_of_a_flag(name: str, value: object) -> None:
    given = trainer_fields([], {name: value})
    assert given == {name: value}
    assert trainer_fields([], {}) == {}


@pytest.mark.parametrize(
    ("argv", "config", "message"),
    [
        (
            ["--learning_rat", "1"],
            {},
            r"unknown option '--learning_rat'; did you mean --learning_rate.*\(`knapsack-rl train --help`",
        ),
        (["--modle", "x"], {}, "unknown option '--modle'; did you mean --model"),
        (["--num_generations", "4"], {}, "num_generations is set by the job: use --average"),
        ([], {"max_generations": 4}, "max_generations is set by the job: use --max"),
        (["--xyzzy"], {}, "unknown option '--xyzzy'"),
        (["stray"], {}, "unknown argument 'stray'"),
        (["--learning_rate", "fast"], {}, "learning_rate.*invalid float value: 'fast'"),
        (["--rule", "beta"], {}, "rule is set by the job: use --rules"),
        ([], {"learning_rate": [1]}, r"learning_rate is \[1\]: it must be one value"),
        ([], {"save_total_limit": {"a": 1}}, "save_total_limit is {'a': 1}: it must be one value"),
        ([], {"bf16": 7}, "bf16"),
        ([], {"save_total_limit": True}, "save_total_limit"),
        ([], {"learning_rat": 1}, "unknown key of the configuration file 'learning_rat'; did you mean learning_rate"),
        ([], {"output_dir": "x"}, "output_dir is set by the job: use --output"),
        ([], {"learning_rate": "fast"}, "learning_rate.*invalid float value: 'fast'"),
    ],
)
def test_mistakes_are_one_clear_line(argv: list[str], config: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError, match=message) as refusal:
        trainer_fields(argv, config)
    assert "\n" not in str(refusal.value)


def test_contradictions_show_before_anything_starts() -> None:
    prepare(Job(trainer={"per_device_train_batch_size": 8, "num_generations": 4}))
    with pytest.raises(TaskError, match="the training arguments do not fit the rule uniform: .*divisible"):
        prepare(Job(trainer={"per_device_train_batch_size": 8, "num_generations": 7}))
    with pytest.raises(TaskError, match="--min is 1"):
        prepare(Job(trainer={"min_generations": 1}))
    with pytest.raises(TaskError, match="do not fit the rule paper: .*does not choose among a pool"):
        prepare(Job(rules=("calibrated", "paper"), trainer={"pool": 2}))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot read the configuration"), ("[1, 2]", "must hold a mapping"), ("a: [", "is not YAML")],
)
def test_unreadable_files_are_one_clear_line(content: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(TaskError, match=message) as refusal:
        read_yaml(file)
    assert "\n" not in str(refusal.value)


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").touch()
    assert read_yaml(tmp_path / "job.yaml") == {}
