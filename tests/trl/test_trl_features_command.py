"""`knapsack-rl features`: the file holds the model's hidden states of each prompt, found by its words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch

from knapsack_rl.__main__ import main
from knapsack_rl.beliefs.looks import Looks, scaled
from knapsack_rl.features.prompts import PromptLooks
from knapsack_rl.features.text import prompt_key
from knapsack_rl.tasks import features_command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small.tokenizer().save_pretrained(folder)
    small.model().save_pretrained(folder)
    return folder


def written(path: Path, prompts: list[Any], column: str = "prompt") -> Path:
    path.write_text("".join(json.dumps({column: prompt, "answer": "a"}) + "\n" for prompt in prompts))
    return path


def made(model: Path, data: list[Path], output: Path, *more: str) -> PromptLooks:
    words = ["features", "--model", str(model), "--dataset", *map(str, data), "--output", str(output), *more]
    assert main(words) == 0
    return PromptLooks(str(output))


@torch.no_grad()
def states(text: str) -> np.ndarray:
    """The last two layers at the last token, each of root mean square 1, by a forward pass of the prompt alone."""
    seen = (
        small.model()
        .eval()(input_ids=torch.tensor([small.tokenizer()(text)["input_ids"]]), output_hidden_states=True)
        .hidden_states
    )
    ends = [seen[-1][0, -1], seen[-2][0, -1]]
    return torch.cat([end / end.pow(2).mean().sqrt() for end in ends]).numpy().astype(np.float64)


def test_the_file_holds_the_hidden_states_of_every_prompt(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several files, in blocks; a prompt of both is there once; one of neither is unknown."""
    monkeypatch.setattr(features_command, "BLOCK", 3)
    texts = ["a=", "bcd=", "hgfedcba=", "ab=", "h="]
    first, second = written(tmp_path / "1.jsonl", texts[:3]), written(tmp_path / "2.jsonl", texts[2:])
    looks = made(model, [first, second], tmp_path / "looks.npz")
    look = looks(["ab=", "never seen", *texts])
    expected = scaled(np.stack([states(text) for text in ["ab=", *texts]]))
    assert np.isnan(look.features_P_F[1]).all()
    np.testing.assert_allclose(np.delete(look.features_P_F, 1, axis=0), expected, atol=4e-3)  # of 16 bits
    assert np.isnan(look.confidence_P_C).all()
    said = capsys.readouterr()
    assert "5 prompts" in said.out
    assert said.err.endswith("3 of 5 prompts\n5 of 5 prompts\n")
    assert looks.described == f"{tmp_path / 'looks.npz'} (5 prompts by {model})"
    saved = Looks()
    saved.load(tmp_path / "looks.npz")
    assert saved.source == str(model)


def test_a_chat_and_a_text_of_the_same_words_are_one_prompt(model: Path, tmp_path: Path) -> None:
    """Written as a chat, by its own form or with --chat; an engine may ask for either."""
    chats = [
        [{"role": "user", "content": "ab"}],
        [{"role": "system", "content": "c"}, {"role": "user", "content": "d"}],
    ]
    of_chats = made(model, [written(tmp_path / "chats.jsonl", chats)], tmp_path / "chats.npz")
    np.testing.assert_allclose(
        of_chats(chats).features_P_F, scaled(np.stack([states("ab="), states("cd=")])), atol=4e-3
    )
    assert of_chats(["ab"]).features_P_F.tolist() == of_chats(chats[:1]).features_P_F.tolist()
    assert prompt_key(chats[1]) == prompt_key("c\nd") != prompt_key("cd")
    questions = written(tmp_path / "texts.jsonl", ["ab"], column="question")
    of_texts = made(model, [questions], tmp_path / "texts.npz", "--chat", "--prompt-column", "question")
    assert of_texts(["ab"]).features_P_F.tolist() == of_chats(["ab"]).features_P_F.tolist()


def test_of_a_long_prompt_the_end_is_read(model: Path, tmp_path: Path) -> None:
    text = "abcdefgh" * 7 + "cab="
    looks = made(model, [written(tmp_path / "long.jsonl", [text])], tmp_path / "looks.npz", "--longest", "3")
    np.testing.assert_allclose(looks([text]).features_P_F, scaled(states("ab=")[None]), atol=4e-3)


def test_what_cannot_be_read_or_written_is_said_in_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = written(tmp_path / "data.jsonl", [[{"role": "user", "content": "ab"}]])
    silent = tmp_path / "silent"
    small.model().save_pretrained(silent)
    plain = small.tokenizer()
    plain.chat_template = None
    plain.save_pretrained(silent)
    there = ["--model", str(model), "--dataset", str(data), "--output", str(tmp_path / "looks.npz")]
    for words, said in (
        ([*there[:-1], str(tmp_path / "no" / "looks.npz")], f"there is no folder {tmp_path / 'no'}"),
        ([*there, "--prompt-column", "question"], "has no column 'question' to take prompts from"),
        ([*there, "--model", str(silent)], "the prompts are chats, and the tokenizer cannot write them"),
        ([*there, "--model", str(tmp_path)], "not a model"),
        ([*there, "--dataset", str(tmp_path / "no.parquet")], "there is no data file"),
    ):
        assert main(["features", *words]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert "Traceback" not in error
        assert not (tmp_path / "looks.npz").exists()


def test_a_file_of_other_prompts_is_said_once(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    looks = made(model, [written(tmp_path / "1.jsonl", ["a=", "b="])], tmp_path / "looks.npz")
    looks(["a=", "b="])
    assert not caplog.text
    for _ in range(2):
        found = looks(["c=", "a=", "d=", None])
        assert np.isnan(found.features_P_F).all(axis=1).tolist() == [True, False, True, True]
    assert len(caplog.messages) == 1
    assert "looks.npz has no features of 3 of the 4 prompts of a batch" in caplog.text


def test_a_prompt_without_a_text_has_no_features_of_one() -> None:
    looks = PromptLooks("text")
    for prompts in (["ab=", None, ""], [None, None], ["", None]):
        unknown = np.isnan(looks(prompts).features_P_F).any(axis=1)
        assert unknown.tolist() == [prompt is None for prompt in prompts]


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file looks.npz in .*: `knapsack-rl features` writes one"):
        PromptLooks("looks.npz")
    (tmp_path / "looks.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match="looks.npz is not a readable"):
        PromptLooks(str(tmp_path / "looks.npz"))


def test_what_cannot_be_written_or_used_is_refused_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, words = written(tmp_path / "1.jsonl", ["a="]), ["features", "--model", str(tmp_path / "none")]
    assert main([*words, "--dataset", str(data), "--output", str(tmp_path)]) == 2
    assert f"{tmp_path} is a folder: name a file" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, words = written(tmp_path / "1.jsonl", ["a="]), ["features", "--model", str(model), "--device", "abacus"]
    assert main([*words, "--dataset", str(data), "--output", str(tmp_path / "looks.npz")]) == 2
    assert "--device abacus cannot be used: " in capsys.readouterr().err
