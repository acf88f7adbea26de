"""What each example needs first: a process in namespaces of its own. In real life that is somebody's container."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def new_target(*options: str, setup: str = "true") -> Iterator[int]:
    """Yield the pid of a process in new namespaces.

    ``options`` are those of unshare(1), which makes it; an ordinary user needs a user namespace as well. ``setup`` is
    a command that it runs inside first.
    """
    if os.geteuid() != 0:
        options = ("--user", "--map-root-user", *options)
    # "read" ends when our end of its stdin is closed: the target ends with us, however we end
    command = ["unshare", *options, "--fork", "sh", "-c", f"{setup} && echo ready && read end"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as unshare:
        if unshare.stdout is None or unshare.stdout.readline() != "ready\n":
            sys.exit(f"this machine does not let us make the example's target: {' '.join(command)}")
        # unshare stays outside; the process inside is its only child
        yield int(Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children").read_text())


def require_program(name: str, package: str) -> None:
    """Exit with status 77, which means skipped, where a program that the example uses is not installed."""
    if shutil.which(name) is None:
        print(f"skipped: {name} ({package}) is not installed")
        sys.exit(77)


def require_root() -> None:
    """Exit with status 77, which means skipped, for an ordinary user: he cannot use ``enter``."""
    if os.geteuid() != 0:
        # he is root in namespaces of his own, and may leave those and come back to them
        print(
            "skipped: enter needs CAP_SYS_ADMIN over the namespaces that are left and joined. Run this as root, or as\n"
            f"unshare --map-root-user --net --mount --pid --fork --mount-proc {sys.executable} {sys.argv[0]}"
        )
        sys.exit(77)
