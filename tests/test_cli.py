"""The command line through its real entry points."""

from __future__ import annotations

import argparse
import json
import os
import re
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
        (["--average=8", "allocate"], "no option --average before the command: write `knapsack-rl COMMAND --average`"),
        (["fly"], "there is no command 'fly': choose from train, allocate"),
        (["alocate"], "there is no command 'alocate'; did you mean allocate?"),
        (["lab", "--out", "x"], "unrecognized arguments: --out x; did you mean --output? (`knapsack-rl lab --help`"),
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


def test_a_defect_says_so_and_where_its_traceback_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(arguments: object) -> int:
        raise ZeroDivisionError("by \x1b[31mnothing")

    monkeypatch.setattr("knapsack_rl.allocate.command.run", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["allocate", "rates.csv"]) == 70
    shown = capsys.readouterr().err
    [saved] = tmp_path.iterdir()
    assert shown.startswith("knapsack-rl: this is a defect of knapsack-rl (ZeroDivisionError: by \\x1b[31mnothing)")
    assert str(saved) in shown
    assert shown.count("\n") == 1
    text = saved.read_text()
    assert "knapsack-rl allocate rates.csv" in text
    assert "Traceback" in text
    assert 'raise ZeroDivisionError("by' in text
    assert saved.stat().st_mode & 0o077 == 0


def test_control_characters_are_shown_as_escapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("\x1b]0;title\x07\x1b[31mred,y\n1,2\n")
    assert main(["allocate", str(rates)]) == 2
    shown = capsys.readouterr().err
    assert "\\x1b]0;title\\x07\\x1b[31mred" in shown
    assert shown.rstrip("\n").isprintable()
    with pytest.raises(SystemExit):
        main(["allocate", "--rule", "\x1b[31mred"])
    assert capsys.readouterr().err.rstrip("\n").isprintable()


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `$K` is the command line."""
    env = {**os.environ, "K": f"{sys.executable} -m knapsack_rl", **environment}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, env=env, timeout=60)


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("$K allocate <&-", 2, "no input: name a file"),
        ("$K allocate {rates} >&-", 2, "standard output is closed"),
        ("$K allocate {rates} > /dev/full", 2, "No space left on device"),
        ("$K allocate {rates} --output /dev/full", 2, "/dev/full: No space left on device"),
        ("$K allocate {rates} 2>&-", 0, ""),
        ("$K allocate {missing} 2>&-", 2, ""),
        ("$K --help | head -n 1; exit ${{PIPESTATUS[0]}}", 0, ""),
        ("$K allocate {rates} --explain | head -n 1 > /dev/null; exit ${{PIPESTATUS[0]}}", 0, None),
        ("$K allocate {rates} --output {link}/x.csv", 2, "Too many levels of symbolic links"),
    ],
)
def test_streams_that_are_closed_or_full_are_one_line(
    line: str, status: int, message: str | None, tmp_path: Path
) -> None:
    rates, link = tmp_path / "rates.csv", tmp_path / "link"
    rates.write_text("p\n0.5\n0.1\n")
    link.symlink_to("link")
    done = shell(line.format(rates=rates, link=link, missing=tmp_path / "missing"))
    assert done.returncode == status, done.stderr
    if message is not None:
        assert message in done.stderr
        assert done.stderr.count("\n") == (1 if message else 0)


def test_output_does_what_a_shell_does(tmp_path: Path) -> None:
    rates, target, link = tmp_path / "rates.csv", tmp_path / "target.csv", tmp_path / "link.csv"
    rates.write_text("p\n0.5\n")
    target.write_text("old")
    link.symlink_to("target.csv")
    assert shell(f"$K allocate {rates} --output {link}").returncode == 0
    assert link.is_symlink()
    expected = "prompt_id,count,p\n1,8,0.5\n"
    assert target.read_text() == expected
    for name in ("-", "/dev/stdout"):
        assert shell(f"$K allocate {rates} --output {name}").stdout == expected
    fifo = shell(f"mkfifo {tmp_path}/fifo; cat {tmp_path}/fifo & $K allocate {rates} --output {tmp_path}/fifo; wait")
    assert (fifo.returncode, fifo.stdout) == (0, expected)
    assert shell(f"$K allocate <(cat {rates}) --output >(cat) | cat").stdout == expected


def test_text_that_a_terminal_cannot_encode_is_no_error(tmp_path: Path) -> None:
    rates = tmp_path / "rates.jsonl"
    rates.write_text('{"id": "\u65e5\u672c", "p": 0.5}\n', encoding="utf-8")
    done = shell(f"$K allocate {rates} --to csv --explain 2>&1 >{tmp_path}/out", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "\\u65e5\\u672c" in done.stdout
    assert (tmp_path / "out").read_text(encoding="utf-8") == "prompt_id,count,p\n\u65e5\u672c,8,0.5\n"


def test_a_mistyped_option_names_the_right_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["allocate", "--explian"])
    shown = capsys.readouterr().err
    assert "unrecognized arguments: --explian; did you mean --explain?" in shown
    assert "`knapsack-rl allocate --help`" in shown


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("p\n" + "0.5\n" * 40_000)
    line = f"{sys.executable} -m knapsack_rl allocate {rates} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "prompt_id,count,p\n", "")


def test_help_shows_defaults_that_exist_and_no_others() -> None:
    for name, parser in parsers().items():
        shown = parser.format_help()
        assert "default: None" not in shown
        assert "default: False" not in shown
        assert "default: []" not in shown
        assert shown.count("default:") == shown.count("(default:"), name


def test_an_empty_name_is_refused_by_its_option() -> None:
    """A name that a script takes from a variable which is not set does not mean the working folder."""
    files = ("FILE", "FOLDER", "TRACE", "SOURCE")
    for command, parser in parsers().items():
        for action in parser._actions:
            if action.metavar in files and action.type is not None and command != "lab":
                with pytest.raises(argparse.ArgumentTypeError, match="the name is empty"):
                    action.type("")  # type: ignore[operator]
    assert main(["allocate", ""]) == 2


def parsers() -> dict[str, argparse.ArgumentParser]:
    from knapsack_rl.__main__ import _parser

    return dict(_parser(set(commands())).parsers)


def test_every_command_has_the_same_word_for_the_same_thing() -> None:
    """Whatever a command writes, divides or chooses from, its option is the one that other commands have."""
    old = {
        "--out", "--out-dir", "--output-dir", "--json", "--parquet", "--data", "--min-n", "--max-n", "--threshold",
        "--group-weighting", "--min-count", "--max-count", "--min-rollouts", "--max-rollouts", "--min-generations",
        "--max-generations", "--num-generations", "--candidate-pool", "--method", "--methods",
    }  # fmt: skip
    dests: dict[str, set[str]] = {}
    for name, parser in parsers().items():
        for action in parser._actions:
            assert not old & set(action.option_strings), name
            long = [o for o in action.option_strings if o.startswith("--") and not o.startswith("--no-")]
            assert len(long) <= 1, name
            for option in action.option_strings:
                dests.setdefault(option, set()).add(name)
    assert dests["--output"] >= {"train", "allocate", "report", "replay", "compare", "lab"}
    assert dests["--average"] >= {"train", "allocate", "replay", "compare"}
    for option in ("--min", "--max"):
        assert dests[option] >= {"train", "allocate", "replay", "verl-args"}
    assert dests["--pool"] >= {"train", "allocate", "verl-args"}
    assert dests["--rule"] | dests["--rules"] == set(commands()) - {"report", "features"}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["al"], ["allocate"]),
        (["allocate", "--ru"], ["--rule"]),
        (["allocate", "--rule", "ca"], ["calibrated"]),
        (["verl-args", "--weighting", ""], ["prompt", "rollout"]),
        (["--ver"], ["--version"]),
        (["report", "tra"], []),  # files are the shell's own
    ],
)
def test_a_shell_completes(typed: list[str], offered: list[str], tmp_path: Path) -> None:
    (tmp_path / "script").write_text(shell("$K --print-completion bash").stdout)
    words = " ".join(f"'{word}'" for word in ["knapsack-rl", *typed])
    line = f"source {tmp_path}/script; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _knapsack_rl"
    done = shell(f'{line}; printf "%s\\n" "${{COMPREPLY[@]}}"; complete -p knapsack-rl')
    assert (done.returncode, done.stderr) == (0, "")
    assert [word for word in done.stdout.splitlines()[:-1] if word] == offered
    assert done.stdout.splitlines()[-1].startswith("complete -o default -F _knapsack_rl")


def test_completion_needs_a_shell_that_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--print-completion", "tcsh"])
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err


def test_no_color_is_obeyed(tmp_path: Path) -> None:
    pytest.importorskip("rich")
    (tmp_path / "t.jsonl").write_text("".join(f'{{"prompt": "q{i}", "rewards": [0, 1, 1, 0]}}\n' for i in range(8)))
    line = f"$K replay {tmp_path}/t.jsonl --groups 4 --average 2 --rules uniform"
    colours = re.compile(r"\x1b\[[\d;]*(3\d|4\d|9\d)m")
    assert not colours.search(shell(line, NO_COLOR="1", FORCE_COLOR="1", TERM="xterm-256color").stdout)
