"""One program in namespaces of two targets: the PID namespace of one, the net namespace of the other.

Needs root: as an ordinary user, each of the two would have a user namespace of its own.
"""

from __future__ import annotations

import subprocess

from _target import new_target, require_root

import nsjoin

require_root()
with new_target("--pid") as one, new_target("--net") as other:
    with nsjoin.Namespace.from_pid(one, "pid") as pid, nsjoin.Namespace.from_pid(other, "net") as net:
        program = ["readlink", "/proc/self/ns/pid", "/proc/self/ns/net"]
        with nsjoin.spawn_in([pid, net], program, stdout=subprocess.PIPE, text=True) as process:
            said, _ = process.communicate()

    print(f"the program is in {' and '.join(said.split())}: of process {one} and of process {other}")
    assert process.returncode == 0
    assert said.split() == [f"pid:[{pid.id.ino}]", f"net:[{net.id.ino}]"]

    # It is in nothing else of theirs: process two does not share the PID namespace of process one.
    with nsjoin.Namespace.from_pid(other, "pid") as pid_of_other, nsjoin.Namespace.from_pid(one, "net") as net_of_one:
        assert pid_of_other != pid
        assert net_of_one != net
