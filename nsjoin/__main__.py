"""``python -m nsjoin``: the command line. Only the module of the chosen command is imported."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

#: By command: a module with ``add_arguments(parser)``, ``run(given) -> exit status`` and, where argparse cannot read
#: the arguments, ``parse(args, parser)``; and the help line.
_COMMANDS = {
    "exec": ("nsjoin._cli.exec", "run a program in the namespaces of another process, with the options of nsenter(1)"),
    "ls": ("nsjoin._cli.ls", "list namespaces, the processes in them, and what else keeps them alive"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. SystemExit for a wrong command line, as from argparse."""
    args = sys.argv[1:] if args is None else args
    parser = argparse.ArgumentParser(prog="python -m nsjoin", description="Work with Linux namespaces.")
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    wanted = args[0] if args else None
    for name, (module, words) in _COMMANDS.items():
        command = commands.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
        if name == wanted:
            chosen = importlib.import_module(module)
            chosen.add_arguments(command)
            command.set_defaults(run=chosen.run, parser=command)
            if hasattr(chosen, "parse"):
                return int(chosen.run(chosen.parse(args[1:], command)))
    given = parser.parse_args(args)
    status: int = given.run(given)
    return status


if __name__ == "__main__":
    sys.exit(main())
