"""The command line through its real entry points."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import knapsack_rl
from knapsack_rl.__main__ import commands, main

HEAVY = {"torch", "transformers", "trl", "datasets", "matplotlib", "jinja2", "pyarrow", "rich", "pandas"}


def modules_after(*words: str) -> set[str]:
    """The modules that a command line leaves loaded, in an interpreter of its own."""
    code = (
        "import json, sys\nfrom knapsack_rl.__main__ import main\n"
        f"try: main({list(words)!r})\nexcept SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


def test_help_loads_nothing_heavy() -> None:
    assert not modules_after("--help") & HEAVY


@pytest.mark.parametrize("command", ["allocate", "report"])
def test_the_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    assert not modules_after(command, "--help") & HEAVY


def test_the_help_of_train_loads_nothing_heavy() -> None:
    assert not modules_after("train", "--help") & HEAVY


def test_the_module_and_the_script_are_the_same_program() -> None:
    script = Path(sysconfig.get_path("scripts")) / "knapsack-rl"
    for program in ([sys.executable, "-m", "knapsack_rl"], [str(script)]):
        done = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"knapsack-rl {knapsack_rl.__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in commands())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["allocate", "--average", "-3"], "--average: '-3' is not a whole number"),
        (["allocate", "--budget", "12.5"], "--budget: '12.5' is not a whole number"),
        (["allocate", "--budget", "8", "--average", "8"], "not allowed with argument"),
        (["allocate", "--avg", "8", "x.csv"], "unrecognized arguments: --avg"),
        (["report"], "required: TRACE"),
    ],
)
def test_wrong_usage_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("knapsack-rl: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_a_missing_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["allocate", "/no/such/file.csv"]) == 2
    assert capsys.readouterr().err == "knapsack-rl: error: /no/such/file.csv: No such file or directory\n"


def test_a_missing_extra_comes_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rates.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["allocate", str(tmp_path / "rates.parquet")]) == 2
    assert "pip install 'knapsack-rl[parquet]'" in capsys.readouterr().err


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("knapsack_rl.allocate.command.run", interrupt)
    assert main(["allocate"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("knapsack_rl.allocate.command.run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["allocate"])


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("p\n" + "0.5\n" * 40_000)
    line = f"{sys.executable} -m knapsack_rl allocate {rates} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "prompt_id,count\n", "")
