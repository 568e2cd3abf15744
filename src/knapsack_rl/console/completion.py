"""Completion of the command line in bash and zsh: a script made of the parsers, so that it never falls behind them."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from typing import Final

SHELLS: Final = ("bash", "zsh")

# What is not completed by the function is completed as a file name (`-o default`).
_SCRIPT = """\
# Completion of knapsack-rl in {shell}. Load it with: source <(knapsack-rl --print-completion {shell})
{prepare}_knapsack_rl() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" list=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        list={first}
    else
        case "${{COMP_WORDS[1]}} $before" in
{choices}
        esac
        if [ -z "$list" ] && [ "${{current#-}}" != "$current" ]; then
            case "${{COMP_WORDS[1]}}" in
{options}
            esac
        fi
    fi
    COMPREPLY=($(compgen -W "$list" -- "$current"))
}}
complete -o default -F _knapsack_rl knapsack-rl
"""


def completion_script(
    shell: str, parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser]
) -> str:
    """The script that completes commands, their options, and the values of options that have a fixed list.

    Args:
        shell: one of `SHELLS`.
        parser: of the program.
        commands: the parsers of its commands, by name, with all their options.
    """
    choices, options = [], []
    for name, command in commands.items():
        options.append(f"                {name}) list={_words(command)};;")
        for action in command._actions:
            if action.choices and action.option_strings:
                values = shlex.quote(" ".join(map(str, action.choices)))
                patterns = "|".join(f'"{name} {option}"' for option in action.option_strings)
                choices.append(f"            {patterns}) list={values};;")
    return _SCRIPT.format(
        shell=shell,
        prepare="autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "",
        first=_words(parser, *commands),
        choices="\n".join(choices),
        options="\n".join(options),
    )


def _words(parser: argparse.ArgumentParser, *more: str) -> str:
    """The words that may follow, quoted for a shell."""
    long = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    return shlex.quote(" ".join([*more, *long]))
