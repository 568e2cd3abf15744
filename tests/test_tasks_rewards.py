"""Scorers, called as TRL calls them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from knapsack_rl.tasks import TaskError
from knapsack_rl.tasks.rewards import Reward, exact_match, math_equal, named_reward, reasoning_gym_reward, text_of

# answer, completion, reward
EXACT = [("42", "42", 1.0), ("42", " 42\n", 1.0), ("42", "the answer is 42", 0.0), ("42", "", 0.0)]
MATH = [
    ("42", "The answer is 42.", 1.0),
    ("42", "so it is \\boxed{42}", 1.0),
    ("42", "43", 0.0),
    ("42", "", 0.0),  # nothing said
    ("42", "no idea", 0.0),  # nothing to parse
    ("1/2", "0.5", 1.0),
    (r"\frac{1}{2}", r"$\frac{2}{4}$", 1.0),
    (r"\sqrt{2}", r"$\sqrt{2}$", 1.0),  # bare LaTeX in the data set
    ("She has 3 and 4: #### 1,234", "1234", 1.0),  # as GSM8K writes it
    ("(1,2)", "(1,2)", 1.0),  # literally the answer
    ("", "42", None),  # the row itself is unreadable: not the model's failure
]


def score(reward: Reward, rows: Sequence[tuple[str, str, float | None]]) -> list[float | None]:
    return reward(
        prompts=["?"] * len(rows),
        completions=[said for _, said, _ in rows],
        answer=[right for right, _, _ in rows],
        prompt_id=[str(i) for i in range(len(rows))],  # TRL hands over every column
        trainer_state=None,
    )


def test_exact_match() -> None:
    assert score(exact_match, EXACT) == [reward for *_, reward in EXACT]


def test_math() -> None:
    pytest.importorskip("math_verify")
    assert score(math_equal, MATH) == [reward for *_, reward in MATH]


def test_math_works_outside_the_main_thread() -> None:
    pytest.importorskip("math_verify")
    scores: list[list[float | None]] = []
    rows = [("777", "it is 777", 1.0), ("777", "it is 778", 0.0)]  # an answer that is not cached yet
    thread = threading.Thread(target=lambda: scores.append(score(math_equal, rows)))
    thread.start()
    thread.join()
    assert scores == [[1.0, 0.0]]


@pytest.mark.parametrize("reward", [exact_match, math_equal])
def test_a_row_without_an_answer_has_no_reward(reward: Reward) -> None:
    """Whatever was said: neither right nor wrong, so that it says nothing about the model."""
    assert reward(prompts=["?"] * 3, completions=["None", "", "4"], answer=[None, None, "4"]) == [None, None, 1.0]


@pytest.mark.parametrize("reward", [exact_match, math_equal])
def test_a_missing_answer_column_is_named(reward: Reward) -> None:
    with pytest.raises(TaskError, match="the column 'answer', which the data set does not have"):
        reward(prompts=["?"], completions=["42"])


def test_conversations_are_judged_by_their_last_message() -> None:
    chat = [{"role": "assistant", "content": "let me see"}, {"role": "assistant", "content": "42"}]
    assert exact_match(prompts=[[]], completions=[chat], answer=[42]) == [1.0]
    assert text_of([]) == ""
    assert text_of([{"role": "assistant", "content": [{"type": "text", "text": "4"}, {"text": "2"}]}]) == "42"
    assert text_of([{"role": "assistant", "content": None}]) == ""


def test_reasoning_gym_judges_by_the_row_and_reads_answer_tags() -> None:
    gym = pytest.importorskip("reasoning_gym")
    task = gym.create_dataset("chain_sum", seed=1, size=2)
    reward = reasoning_gym_reward(task.score_answer, [task[0], task[1]], ["a", "b"])
    right = task[1]["answer"]
    scores = reward(
        prompts=["?"] * 4, completions=[right, f" {right}\n", f"<answer>{right}</answer>", "no"], prompt_id=["b"] * 4
    )
    assert scores[:3] == [1.0, 1.0, 1.0]
    assert scores[3] is not None and scores[3] < 1
    with pytest.raises(TaskError, match="column 'prompt_id'"):
        reward(prompts=["?"], completions=[right])


def test_rewards_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert named_reward("exact") is exact_match
    file = tmp_path / "my_rewards_of_this_test.py"
    file.write_text("def short(prompts, completions, **columns):\n    return [1.0 / len(c) for c in completions]\n")
    assert named_reward(f"{file}:short")(prompts=["?"], completions=["ab"]) == [0.5]
    monkeypatch.syspath_prepend(tmp_path)
    assert named_reward("my_rewards_of_this_test:short")(prompts=["?"], completions=["a"]) == [1.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "unknown reward 'nonsense': use exact, math"),
        ("nowhere.py:f", "no file nowhere.py"),
        ("no.such.module:f", "cannot import the reward's module"),
        ("math:nothing", "no function 'nothing'"),
    ],
)
def test_a_reward_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        named_reward(name)
