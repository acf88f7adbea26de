"""Is the program really inside? Three ways to use a process's PID namespace, and what each one gives.

Runs as root and as an ordinary user. Exits with an error if anything is not as it is printed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

from _target import new_target

import nsjoin

# Says what it sees, line by line, then waits for the end of its input.
PROGRAM = """
echo $$                        # the program's own pid
sh -c '
    echo $$                    # the pid of its child
    echo $PPID                 # the parent, as the child sees it
    cd /proc; echo [0-9]*      # all pids that the child can see
' &
wait
echo $!                        # the child, as the program sees it
read end
"""


class Seen(NamedTuple):
    """What there was to see of one program and its child."""

    pid_for_us: int
    namespace: str
    pid: int
    child: int
    child_for_program: int
    parent_for_child: int
    in_proc: str

    def sees(self, *pids: int) -> bool:
        """Whether the child has found all of ``pids`` in its /proc."""
        return {str(pid) for pid in pids} <= set(self.in_proc.split())


def look(target: int, *, fork: bool) -> Seen:
    """Start the program and see what it says."""
    arguments = ["sh", "-c", PROGRAM]
    with nsjoin.spawn_in(
        target, arguments, fork=fork, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        pid, child, parent, in_proc, child_for_program = (program.stdout.readline().strip() for _ in range(5))
        namespace = os.readlink(f"/proc/{program.pid}/ns/pid")
    return Seen(program.pid, namespace, int(pid), int(child), int(child_for_program), int(parent), in_proc)


def show_programs(target: int) -> None:
    """Show (a) and (b) side by side."""
    a, b = look(target, fork=False), look(target, fork=True)
    row("", "(a) fork=False", "(b) spawn_in as it is")
    row("the program, Popen.pid", a.pid_for_us, b.pid_for_us)
    row("the program, as it sees itself", a.pid, b.pid)
    row("its child, as the program sees it", a.child_for_program, b.child_for_program)
    row("its child, as it sees itself", a.child, b.child)
    row("the parent, as the child sees it", a.parent_for_child, b.parent_for_child)
    row("all pids that the child can see", a.in_proc, b.in_proc)
    row("/proc/PID/ns/pid of the program", a.namespace, b.namespace)

    outside, inside = os.readlink("/proc/self/ns/pid"), os.readlink(f"/proc/{target}/ns/pid")
    check("(a) the program is outside and keeps its pid", a.namespace == outside and a.pid == a.pid_for_us)
    check("(a) its child is inside", a.child != a.child_for_program and a.sees(1, a.child))
    check("(a) the child knows no parent and cannot see the program", not a.parent_for_child and not a.sees(a.pid))
    check("(b) the program is inside and has a pid of its own there", b.namespace == inside and b.pid != b.pid_for_us)
    check("(b) its child is inside too, and the program knows it", b.child == b.child_for_program)
    check("(b) the child knows its parent and sees both", b.parent_for_child == b.pid and b.sees(b.pid, b.child))


def show_enter(target: int) -> None:
    """Show (c): what happens to this thread itself."""
    before = entries()
    with nsjoin.enter(target, "pid"):
        within = entries()
        child = subprocess.run(["readlink", "/proc/self/ns/pid"], stdout=subprocess.PIPE, text=True, check=True)
    after = entries()
    row('(c) enter(target, "pid")', "pid", "pid_for_children")
    row("this thread, before", *before)
    row("this thread, within", *within)
    row("a subprocess started within", child.stdout.strip(), "")
    row("this thread, after", *after)

    inside = os.readlink(f"/proc/{target}/ns/pid")
    check("(c) the thread itself never moves", before[0] == within[0] == after[0] != inside)
    check("(c) what it starts within is born inside", before[1] != within[1] == inside == child.stdout.strip())
    check("(c) afterwards all is as it was", after == before)


def entries() -> tuple[str, str]:
    """This thread's own PID namespace, and the one for its children."""
    return os.readlink("/proc/thread-self/ns/pid"), os.readlink("/proc/thread-self/ns/pid_for_children")


def row(label: str, left: object, right: object) -> None:
    """Print a row of a table."""
    print(f"{label:36}{left!s:20}{right!s}".rstrip())


def check(statement: str, so: bool) -> None:
    """Print a statement, and exit if it is not so."""
    print(f"{'ok' if so else 'NOT SO':6} {statement}")
    if not so:
        sys.exit(1)


def main() -> None:
    """Start a target, and show all three with it."""
    options = ("--pid", "--mount", "--mount-proc")
    with new_target(*options) as target:
        if sys.argv[1:] == ["(c)"]:
            show_enter(target)
            return
        print(f"The target: process {target}, with namespaces of its own: unshare {' '.join(options)}\n")
        show_programs(target)
        print()
        if os.geteuid() == 0:
            show_enter(target)
            return
        # To leave a namespace and to come back takes CAP_SYS_ADMIN over both of them. Over his own namespaces an
        # ordinary user has no power, but inside the target he is root. So (c) is shown from there, one level deeper.
        print("An ordinary user may not enter; so (c) is shown by a Python that runs inside the target:")
        sys.stdout.flush()
        sys.exit(nsjoin.run_in(target, [sys.executable, __file__, "(c)"]).returncode)


if __name__ == "__main__":
    main()
