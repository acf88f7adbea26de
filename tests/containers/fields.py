"""What a program inside is: the fields that are compared, all read by one and the same program."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    #: A field's name and its text.
    Fields = Mapping[str, str]

# The shell's own files say what it was started with; what it changes for its children does not show there.
READER = """
p=/proc/${1:-$$}
head -v -n 999999 $p/status $p/mountinfo $p/cgroup $p/environ $p/oom_score_adj $p/limits /proc/sys/kernel/hostname &&
echo '==> links <==' &&
ls -l $p/ns/ $p/cwd
"""
_STATUS = ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Umask"]
#: What is read, by what a user calls it: the columns of the table.
COLUMNS = {
    "inside": ("ns/cgroup", "ns/ipc", "ns/mnt", "ns/net", "ns/pid", "ns/time", "ns/user", "ns/uts", "hostname"),
    "mounts": ("mountinfo",),
    "cwd": ("cwd",),
    "user": ("Uid", "Gid", "Groups"),
    "caps": ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"),
    "no_new_privs": ("NoNewPrivs",),
    "cgroup": ("cgroup",),
    "env": ("environ",),
    "oom": ("oom_score_adj",),
    "limits": ("limits", "Umask"),
    "seccomp": ("Seccomp",),
}


def reader(pid_inside: int | None = None) -> list[str]:
    """Return the command that reads the fields of a process inside, or of itself."""
    return ["/bin/sh", "-c", READER, "sh", *([] if pid_inside is None else [str(pid_inside)])]


def parse(output: str) -> dict[str, str]:
    """Return the fields which the reader has printed."""
    parts = re.split(r"^==> (\S+) <==\n", output, flags=re.MULTILINE)
    files = {os.path.basename(path): text.strip("\n") for path, text in zip(parts[1::2], parts[2::2])}
    status = dict(re.findall(r"^(\w+):[ \t]*(.*?)[ \t]*$", files["status"], flags=re.MULTILINE))
    fields = {name: status[name].replace("\t", " ") for name in _STATUS}
    for link, text in re.findall(r"(\S+) -> (\S+)$", files["links"], flags=re.MULTILINE):
        fields["cwd" if link.endswith("/cwd") else f"ns/{link}"] = text
    fields["environ"] = "\n".join(sorted(files["environ"].rstrip("\0").split("\0")))
    for name in ("mountinfo", "cgroup", "oom_score_adj", "limits", "hostname"):
        fields[name] = files[name]
    return fields
