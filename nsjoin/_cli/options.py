"""The command line of nsenter(1), read as getopt_long(3) does."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NamedTuple

from .._kernel.nstypes import NSTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


class _Option(NamedTuple):
    """``takes`` is as in getopt(3): "" no argument, ":" a required one, "::" an optional one in the same word."""

    short: str
    name: str
    takes: str
    metavar: str
    help: str


_LETTERS = {"mnt": "m", "uts": "u", "ipc": "i", "net": "n", "pid": "p", "user": "U", "cgroup": "C", "time": "T"}
_NAMES = {"mnt": "mount"}
#: By option: the type of namespace.
TYPES = {_NAMES.get(row.name, row.name): row.name for row in NSTYPES}
OPTIONS = (
    _Option("t", "target", ":", "PID", "the process whose namespaces to enter"),
    _Option("a", "all", "", "", "enter all of its namespaces that differ from the current ones"),
    *(
        _Option(_LETTERS[nstype], name, "::", "FILE", f"enter the {nstype} namespace of the target, or of FILE")
        for name, nstype in TYPES.items()
    ),
    _Option("S", "setuid", ":", "UID", "run as this uid"),
    _Option("G", "setgid", ":", "GID", "run as this gid, without supplementary groups"),
    _Option("", "preserve-credentials", "", "", "keep the uid, gid and groups when entering a user namespace"),
    _Option("r", "root", "::", "DIR", "root directory: the target's, or DIR in the current mount namespace"),
    _Option("w", "wd", "::", "DIR", "working directory: the target's, or DIR in the current mount namespace"),
    _Option("W", "wdns", ":", "DIR", "working directory: DIR as the program sees it"),
    _Option("e", "env", "", "", "use the target's environment"),
    _Option("F", "no-fork", "", "", "with --pid: only the program's children are in the PID namespace"),
)
_HELP = _Option("h", "help", "", "", "")
_PLACES = {"": "", ":": " {}", "::": "[={}]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options for ``--help``.

    ``parse`` reads the command line: argparse would take the program for an optional argument.
    """
    parser.usage = f"{parser.prog} [options] [program [argument ...]]"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = f"{parser.description}\n\noptions:\n{_table()}"
    parser.epilog = (
        "The default program is $SHELL, or /bin/sh. The exit status is the program's; if a signal ended it, this\n"
        "process ends by the same signal. 127: program not found; 126: it cannot be executed; 1: any other error."
    )
    parser._action_groups.clear()  # options are in the description


def _table() -> str:
    rows = [
        (
            f"  {f'-{one.short}, ' if one.short else '    '}--{one.name}{_PLACES[one.takes].format(one.metavar)}",
            one.help,
        )
        for one in (*OPTIONS, _HELP._replace(help="show this help"))
    ]
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"{left.ljust(width)}  {right}" for left, right in rows)


def parse(args: Sequence[str], parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Read ``args`` up to the first that is no option, as getopt_long(3) does. SystemExit for an unknown option."""
    words = list(args)
    options: dict[str, str | None] = {}
    while words and words[0].startswith("-") and words[0] != "-":
        word = words.pop(0)
        if word == "--":
            break
        found = _long(word[2:], words, parser) if word.startswith("--") else _short(word[1:], words, parser)
        options.update(found)
    if "help" in options:
        parser.print_help()
        parser.exit()
    return argparse.Namespace(options=options, program=words)


def _long(word: str, words: list[str], parser: argparse.ArgumentParser) -> dict[str, str | None]:
    name, has_value, value = word.partition("=")
    every = (*OPTIONS, _HELP)
    found = [one for one in every if one.name == name] or [one for one in every if one.name.startswith(name)]
    if len(found) != 1:
        _usage(parser, f"{'ambiguous' if found else 'unrecognized'} option '--{name}'")
    if has_value and not found[0].takes:
        _usage(parser, f"option '--{found[0].name}' takes no argument")
    return {found[0].name: value if has_value else _next(found[0], words, parser)}


def _short(letters: str, words: list[str], parser: argparse.ArgumentParser) -> dict[str, str | None]:
    options: dict[str, str | None] = {}
    while letters:
        found = next((one for one in (*OPTIONS, _HELP) if one.short == letters[0]), None)
        if found is None:
            _usage(parser, f"invalid option -- '{letters[0]}'")
        letters = letters[1:]
        if found.takes and letters:
            options[found.name] = letters
            break
        options[found.name] = _next(found, words, parser)
    return options


def _next(option: _Option, words: list[str], parser: argparse.ArgumentParser) -> str | None:
    if option.takes != ":":
        return None
    if not words:
        _usage(parser, f"option '--{option.name}' requires an argument")
    return words.pop(0)


def _usage(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    parser.exit(1, f"{parser.prog}: {message}\nTry '{parser.prog} --help'.\n")
