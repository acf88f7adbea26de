"""spawn_in returns a subprocess.Popen: pipes, communicate, timeouts and signals are as you know them.

Runs as root and as an ordinary user.
"""

from __future__ import annotations

import signal
import subprocess
from subprocess import PIPE

from _target import new_target

import nsjoin

with new_target("--pid", "--mount", "--mount-proc") as target:
    # Talk to a program inside; its exit status is its own, there is no wrapper in between.
    program = 'read name; echo "hello, $name"; echo "I am process $$" >&2; exit 7'
    with nsjoin.spawn_in(target, ["sh", "-c", program], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as greeter:
        said, complained = greeter.communicate("world\n", timeout=60)
    print(f"process {greeter.pid} says: {said.strip()}; {complained.strip()}; and ends with {greeter.returncode}")
    assert said == "hello, world\n"
    assert complained.startswith("I am process ")
    assert int(complained.split()[-1]) != greeter.pid
    assert greeter.returncode == 7

    # A program that does not end: the wait times out, and terminate() reaches the program itself.
    with nsjoin.spawn_in(target, ["sleep", "infinity"]) as sleeper:
        timed_out = False
        try:
            sleeper.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            timed_out = True
        sleeper.terminate()
    print(f"the sleeper was ended by {signal.Signals(-sleeper.returncode).name}")
    assert timed_out
    assert sleeper.returncode == -signal.SIGTERM

    # run_in does the same in one call: when the time is over, the program is killed, and gone.
    try:
        nsjoin.run_in(target, ["sleep", "infinity"], timeout=0.1)
    except subprocess.TimeoutExpired as expired:
        print(f"run_in: {expired}")
    else:
        raise AssertionError("sleep infinity has ended by itself")
