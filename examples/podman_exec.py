"""``podman exec`` by name, as a function: podman_exec.py NAME PROGRAM [ARGUMENT...].

The program is like the container's own: user, environment, working directory, capabilities, cgroup. It is a child of
ours, with its own exit status, and starts in a few milliseconds. Runs as the user whose container it is.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import nsjoin

if TYPE_CHECKING:
    from collections.abc import Sequence


def pid_of(name: str) -> int:
    """The pid of the container's program; ProcessLookupError if it does not run."""
    command = ["podman", "inspect", "--type=container", "--format={{.State.Pid}}", name]
    pid = int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    if pid == 0:
        raise ProcessLookupError(f"container {name} does not run")
    return pid


def podman_exec(name: str, args: Sequence[str], **options: Any) -> subprocess.CompletedProcess[Any]:
    """``nsjoin.run_in`` with the container ``name`` as the target, and its options."""
    pid = pid_of(name)
    with nsjoin.Target.from_pid(pid) as target:
        # what the target pins is the container's program if that is still the pid; else it may be anybody's
        if pid_of(name) != pid:
            raise ProcessLookupError(f"container {name} has just been restarted")
        return nsjoin.run_in(target, args, like_target=True, **options)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} NAME PROGRAM [ARGUMENT...]")
    status = podman_exec(sys.argv[1], sys.argv[2:]).returncode
    sys.exit(status if status >= 0 else 128 - status)  # killed by a signal: what a shell says
