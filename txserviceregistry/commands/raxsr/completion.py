"""
``raxsr complete``: a script that lets a shell complete command lines.

The script knows all commands and options by heart: pressing a key starts no Python.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from .app import COMMANDS
from .base import RaxsrCommand
from .parser import Parser

_SCRIPT = r"""_raxsr() {
    local current="${COMP_WORDS[COMP_CWORD]}" previous="" command="" word="" candidates="" index
    local skip=0 known="
@COMMANDS@
"
    if [ "$COMP_CWORD" -gt 0 ]; then
        previous="${COMP_WORDS[COMP_CWORD - 1]}"
    fi
    for ((index = 1; index < COMP_CWORD; index++)); do
        word="${COMP_WORDS[index]}"
        if [ "$skip" -eq 1 ]; then
            skip=0
            continue
        fi
        case "$word" in
            --) return 0 ;;
            @WITH_VALUE@) skip=1 ;;
            -*) ;;
            help) [ -z "$command" ] && continue ;;
            *)
                case "$known" in
                    *"
$command$word "*|*"
$command$word
"*) command="$command$word " ;;
                esac
                ;;
        esac
    done
    case "$previous" in
@VALUES@
    esac
    if [ -z "$candidates" ] && [ "$skip" -eq 0 ]; then
        case "$command" in
@OPTIONS@
        esac
    fi
    if [ -n "$candidates" ]; then
        COMPREPLY=($(compgen -W "$candidates" -- "$current"))
    else
        COMPREPLY=($(compgen -f -- "$current"))
    fi
    return 0
}
complete -F _raxsr raxsr
"""

_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


class Complete(RaxsrCommand):
    """
    Print a script that completes raxsr's commands and options.

    For bash, add this to ~/.bashrc:    source <(raxsr complete --shell bash)
    For zsh, add this to ~/.zshrc:      source <(raxsr complete --shell zsh)
    """

    example = "raxsr complete --shell bash > /etc/bash_completion.d/raxsr"

    def addArguments(self, parser: Parser) -> None:
        """What the command takes."""
        parser.add_argument("--shell", choices=("bash", "zsh"), default="bash", help="which one; bash if not given")

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Do it."""
        everywhere = list(self.app.parser._actions)
        values: dict[str, list[str]] = {}
        options = {"": _flags(everywhere)}
        for name in COMMANDS:
            factory = self.app.command_manager.commands[name].load()
            actions = factory(self.app, self.app.options).get_parser(name)._actions
            for action in actions:
                if action.option_strings and action.nargs != 0:
                    values.setdefault("|".join(action.option_strings), []).extend(map(str, action.choices or ()))
            options[name] = [*_flags(actions), *_flags(everywhere)]
        for action in everywhere:
            if action.option_strings and action.nargs != 0:
                values.setdefault("|".join(action.option_strings), [])
        self.app.stdout.write(_script(parsed_args.shell, options, values))


def _flags(actions: Iterable[argparse.Action]) -> list[str]:
    return [option for action in actions if action.help != argparse.SUPPRESS for option in action.option_strings]


def _script(shell: str, options: dict[str, list[str]], values: dict[str, list[str]]) -> str:
    first = {name.partition(" ")[0] for name in COMMANDS}
    words = {"": sorted(first) + options[""]}
    for name in first:
        actions = [command.partition(" ")[2] for command in COMMANDS if command.startswith(f"{name} ")]
        words[f"{name} "] = sorted(actions)
    for name in COMMANDS:
        words[f"{name} "] = sorted(set(options[name]))
    cases = [f'            "{command}") candidates="{" ".join(found)}" ;;' for command, found in sorted(words.items())]
    choices = [
        f'        {option}) candidates="{" ".join(dict.fromkeys(found))}" ;;'
        for option, found in sorted(values.items())
        if found
    ]
    script = (
        _SCRIPT.replace("@COMMANDS@", "\n".join(sorted({*COMMANDS, *first})))
        .replace("@WITH_VALUE@", "|".join(sorted(values)))
        .replace("@VALUES@", "\n".join(choices))
        .replace("@OPTIONS@", "\n".join(cases))
    )
    return (_ZSH if shell == "zsh" else "") + script
