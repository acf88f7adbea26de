"""Where the containers of one session live: a folder, a root file system in it, and a cgroup, all with one name.

Everything that an engine makes is below the folder and the cgroup, so the name tells what has been left behind.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from nsjoin._kernel import calls

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

IS_ROOT = os.geteuid() == 0
_FOLDERS = ["bin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/lib", "var", "work/place"]
_PROGRAMS = [
    "cat",
    "env",
    "head",
    "hostname",
    "id",
    "ip",
    "kill",
    "ls",
    "mount",
    "ps",
    "pwd",
    "readlink",
    "sh",
    "sleep",
    "true",
]
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home:/bin/sh\n",
    "etc/group": "root:x:0:\napp:x:1000:\nstaff:x:2000:app\n",
    "etc/os-release": "ID=nsjoin\nNAME=nsjoin\n",  # systemd-nspawn starts no system without it
}
#: Puts the shell into the cgroups named before "--", then becomes the command after it: as root only.
_INTO_CGROUPS = 'while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit; shift; done; shift; exec "$@"'
#: How long what has been killed may take until it is gone, in seconds.
PATIENCE = 30


class CannotStartError(Exception):
    """A runtime that does not start here; its own words."""


class Workshop:
    """``folder``, ``rootfs`` and, for root, ``cgroups``: one for each hierarchy that is mounted here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rootfs = folder / "rootfs"
        self.cgroups: list[Path] = []
        self._places = itertools.count(1)

    @property
    def name(self) -> str:
        return self.folder.name

    def place(self) -> Path:
        """A folder that is not there yet, for one container. Its name is one that no other container here has."""
        return self.folder / f"{self.name}-{next(self._places)}"

    def make(self) -> None:
        # conmon, and the root of a user namespace made by newuidmap(1), are others to the folder's owner
        self.folder.chmod(0o755)
        build_root_file_system(self.rootfs)
        if IS_ROOT:
            for hierarchy in own_cgroups():
                self.cgroups.append(hierarchy / self.name)
                make_cgroup(self.cgroups[-1])

    def run(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> str:
        """Run a command of an engine in our cgroups; return what it printed."""
        # output goes to files, not pipes: what the command leaves running in the background would hold a pipe open
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            result = subprocess.run(
                self.inside_cgroups(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=env,
                cwd=cwd,
                check=False,
                timeout=120,
            )
            output.seek(0)
            errors.seek(0)
            said, complained = output.read(), errors.read()
        if result.returncode != 0:
            words = (complained or said).strip().splitlines()  # warnings, and at last the error
            raise CannotStartError(words[-1] if words else f"exit status {result.returncode}, without a word")
        return said

    def inside_cgroups(self, command: Sequence[str | os.PathLike[str]]) -> list[str]:
        """Return a command that goes into a cgroup in each of ours and then becomes ``command``.

        Not into ours themselves: a cgroup of version 2 that delegates controllers to those in it has no processes of
        its own (cgroups(7), "no internal processes"); where it has, runc makes the container's cgroup a threaded one.
        """
        leaves = [cgroup / f"start-{next(self._places)}" for cgroup in self.cgroups]
        for leaf in leaves:
            make_cgroup(leaf)
        arguments = [os.fspath(argument) for argument in command]
        return ["sh", "-c", _INTO_CGROUPS, "sh", *map(str, leaves), "--", *arguments] if leaves else arguments

    def remove(self) -> None:
        """Remove the folder and the cgroups; AssertionError, naming them, if a process, mount or cgroup is left."""
        left = leftovers(self.name) + remove_cgroups(self.name)
        shutil.rmtree(self.folder)
        assert not left, left


@contextlib.contextmanager
def workshop() -> Iterator[Workshop]:
    """A new Workshop, and nothing of it afterwards."""
    # short and not below pytest's tmp_path: sockets in it have at most 108 characters
    shop = Workshop(Path(tempfile.mkdtemp(prefix="nsjoin-")))
    try:
        shop.make()
        yield shop
    finally:
        shop.remove()


def build_root_file_system(root: Path) -> None:
    """The least that every runtime starts: busybox, links to it, and what they look up in /etc."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise CannotStartError("busybox is not installed (busybox-static)")
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy(busybox, root / "bin" / "busybox")
    for program in _PROGRAMS:
        (root / "bin" / program).symlink_to("busybox")
    for path, text in _FILES.items():
        (root / path).write_text(text)


# --- cgroups ------------------------------------------------------------------------------------------------


def hierarchies() -> Iterator[tuple[Path, str, set[str]]]:
    """Where each hierarchy is mounted, its root there, and its controllers; version 2's is {""}."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        _, _, _, root, mount_point = fields.split()[:5]
        kind, _, options = rest.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            yield Path(mount_point), root, set(options.split(",")) if kind == "cgroup" else {""}


def own_cgroups() -> Iterator[Path]:
    """The folder of this process's cgroup in each hierarchy that is mounted: version 1, 2, or both (hybrid)."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for mount_point, root, controllers in hierarchies():
        for _, of_path, path in lines:
            if set(of_path.split(",")) <= controllers and path.startswith(root):
                yield mount_point / os.path.relpath(path, root)


def make_cgroup(cgroup: Path) -> None:
    cgroup.mkdir()
    # a cpuset of version 1 begins empty, and nothing can be put into it before it has these two
    for name in ("cpuset.cpus", "cpuset.mems"):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if not (cgroup / name).read_text().strip():
                (cgroup / name).write_text((cgroup.parent / name).read_text())


def remove_cgroups(name: str) -> list[str]:
    """Remove ours and those in ours, and what crun and podman have put beside: they do not look where they are.

    Returns those that cannot be removed, as there is still something in them.
    """
    left = []
    for mount_point, _, _ in hierarchies():
        for folder, _, _ in os.walk(mount_point, topdown=False):
            if name in folder:
                try:
                    os.rmdir(folder)
                except OSError as error:
                    left.append(f"cgroup {folder}: {error.strerror}")
    return left


# --- what is left -------------------------------------------------------------------------------------------


def leftovers(name: str) -> list[str]:
    """Processes and mounts that have to do with ``name``, after those that are just ending have had their time.

    ``podman exec`` returns before its conmon has ended, and lxc-start's monitor ends after its container.
    """
    for pid in _processes(name):
        with contextlib.suppress(ProcessLookupError), gone_afterwards(pid):
            pass
    left = [f"process {pid}: {_read(pid, 'cmdline')}" for pid in _processes(name)]
    return left + [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]


def _processes(name: str) -> list[int]:
    """Pids of processes that name ``name`` in their arguments or cgroup, or whose root is below the folder."""
    here = os.getpid()
    own_mounts = _read(here, "mountinfo")
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        mounts = _read(pid, "mountinfo")
        told = _read(pid, "cmdline") + _read(pid, "cgroup") + ("" if mounts == own_mounts else mounts)
        if name in told and pid != here and not _is_zombie(pid):
            found.append(pid)
    return found


def _read(pid: int, what: str) -> str:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # it has ended, or is somebody else's
        return ""


def _is_zombie(pid: int) -> bool:
    # somebody else's to wait for: what daemonized is a child of init's
    return _read(pid, "stat").rpartition(")")[2].split()[:1] in ([], ["Z"], ["X"])


@contextlib.contextmanager
def gone_afterwards(pid: int) -> Iterator[None]:
    """Wait at the end of the block until this process, which is not our child, has ended; but not for ever."""
    pidfd = calls.pidfd_open(pid)  # PyPy's os has none
    try:
        yield
        select.select([pidfd], [], [], PATIENCE)
    finally:
        os.close(pidfd)
