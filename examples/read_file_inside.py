"""Read a file as the target sees it: enter its mount namespace, open the file, leave, read.

Needs root.
"""

from __future__ import annotations

import os

from _target import new_target, require_root

import nsjoin

require_root()
# The target mounts a file system over /mnt that nobody else has.
with new_target("--mount", setup="mount -t tmpfs tmpfs /mnt && echo from inside > /mnt/greeting") as target:
    outside = os.getcwd(), os.path.exists("/mnt/greeting")

    # Enter for as little as possible: within, every path is the target's, also those that an import would look up.
    with nsjoin.enter(target, "mnt"):
        file = open("/mnt/greeting")  # noqa: SIM115 - closed below

    # We are outside again, in the same working directory; an open file stays open.
    with file:
        text = file.read()
    print(f"/mnt/greeting says: {text.strip()}; outside there is no such file")
    assert text == "from inside\n"
    assert outside == (os.getcwd(), False)
    assert not os.path.exists("/mnt/greeting")
