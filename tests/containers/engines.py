"""The runtimes: how each starts a container here, which process is its program, and how its own exec is called."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .workshop import IS_ROOT, PATIENCE, CannotStartError, gone_afterwards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .workshop import Workshop

PROGRAM = ("/bin/sleep", "86400")
#: A variable that only the container has. podman and OCI take any text; it goes through lxc's configuration too.
VARIABLE, VALUE = "NSJOIN_GREETING", "hello from = inside"
#: Not what anybody else has, and more than ours, which an ordinary user may set too.
OOM_SCORE_ADJ = 200


@dataclass(frozen=True)
class Like:
    """What a container is to be like, beyond what the runtime does by itself."""

    user: int = 0
    groups: tuple[int, ...] = ()
    capabilities: tuple[str, ...] | None = None
    cwd: str = "/"
    host_pid: bool = False
    cgroup_namespace: bool = False


CASES = {
    "plain": Like(),
    "as user 1000": Like(user=1000, groups=(2000, 2001)),
    "no capabilities": Like(capabilities=()),
    "two capabilities": Like(capabilities=("CAP_NET_RAW", "CAP_CHOWN")),
    "in a folder": Like(cwd="/work/place"),
    "host's pids": Like(host_pid=True),
    "cgroup namespace": Like(cgroup_namespace=True),
}


@dataclass(frozen=True)
class Container:
    """One that runs. ``pid`` is its program's; ``own_exec`` and arguments are the command of the engine's own exec."""

    engine: str
    case: str
    pid: int
    own_exec: tuple[str, ...] | None
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True)
class Engine:
    """A runtime, the programs that it needs, and the cases that it can be asked for."""

    name: str
    programs: tuple[str, ...]
    _start: Callable[[Workshop, str], contextlib.AbstractContextManager[Container]]
    cases: tuple[str, ...] = ("plain",)

    @contextlib.contextmanager
    def start(self, shop: Workshop, case: str = "plain") -> Iterator[Container]:
        """A container that runs, and is gone afterwards; CannotStartError, with the runtime's own words."""
        for program in self.programs:
            if shutil.which(program) is None:
                raise CannotStartError(f"{program} is not installed")
        with contextlib.ExitStack() as later, self._start(shop, case) as container:
            later.enter_context(gone_afterwards(container.pid))
            wait_for_exec(container.pid)
            yield container


def wait_for_exec(pid: int) -> None:
    """Wait until a process is the container's program: crun returns while it is still crun, with our environment."""
    command = "\0".join((*PROGRAM, "")).encode()
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}/cmdline").read_bytes() != command:
        if time.monotonic() > deadline:
            raise CannotStartError(f"process {pid} has not become {' '.join(PROGRAM)}")
        os.sched_yield()


# --- runc and crun: a bundle with a config.json ---------------------------------------------------------------


def oci_config(shop: Workshop, tool: str, bundle: Path, like: Like) -> None:
    """Write the bundle's config.json: the runtime's own example, with what we need changed."""
    shop.run([tool, "spec", *([] if IS_ROOT else ["--rootless"])], cwd=bundle)
    config = json.loads((bundle / "config.json").read_text())
    process: dict[str, Any] = config["process"]
    process.update(terminal=False, args=list(PROGRAM), cwd=like.cwd, oomScoreAdj=OOM_SCORE_ADJ)
    process["user"] = {"uid": like.user, "gid": like.user, "additionalGids": list(like.groups)}
    process["env"].append(f"{VARIABLE}={VALUE}")
    if like.capabilities is not None:
        process["capabilities"] = {
            which: list(like.capabilities) for which in ("bounding", "effective", "permitted", "inheritable", "ambient")
        }
    config["root"] = {"path": str(shop.rootfs), "readonly": True}
    config["hostname"] = "box"
    namespaces: list[dict[str, str]] = config["linux"]["namespaces"]
    if like.host_pid:
        namespaces.remove({"type": "pid"})
    if like.cgroup_namespace and {"type": "cgroup"} not in namespaces:  # the example has it where version 2 is mounted
        namespaces.append({"type": "cgroup"})
    (bundle / "config.json").write_text(json.dumps(config))


@contextlib.contextmanager
def oci(shop: Workshop, case: str, tool: str, wrapper: tuple[str, ...] = ()) -> Iterator[Container]:
    bundle = shop.place()
    command = [tool, "--root", str(shop.folder / f"{tool}-state")]
    name = bundle.name
    bundle.mkdir()
    try:
        oci_config(shop, tool, bundle, CASES[case])
        run = ["run", "--detach", "--pid-file", str(bundle / "pid"), "--bundle", str(bundle), name]
        shop.run([*wrapper, *command, *run])
        pid = int((bundle / "pid").read_text())
        yield Container(tool, case, pid, (*command, "exec", name))
    finally:
        shop.run([*command, "delete", "--force", name])
        shutil.rmtree(bundle)


def runc(shop: Workshop, case: str) -> contextlib.AbstractContextManager[Container]:
    return oci(shop, case, "runc")


def crun(shop: Workshop, case: str) -> contextlib.AbstractContextManager[Container]:
    # crun refuses to start where version 2 is mounted beside version 1, so it is not to see that
    hide = 'umount /sys/fs/cgroup/unified && exec "$@"'
    hybrid = os.path.ismount("/sys/fs/cgroup/unified") and IS_ROOT
    wrapper = ("unshare", "--mount", "--propagation=private", "sh", "-c", hide, "sh") if hybrid else ()
    return oci(shop, case, "crun", wrapper)


# --- podman ---------------------------------------------------------------------------------------------------

_CONTAINERS_CONF = """
[engine]
lock_type = "file"
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "runc"
tmp_dir = "{folder}/tmp"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
netns = "none"
[network]
network_config_dir = "{folder}/net"
"""
_STORAGE_CONF = """
[storage]
driver = "vfs"
graphroot = "{folder}/root"
runroot = "{folder}/runroot"
"""


def podman_home(folder: Path) -> dict[str, str]:
    """Make a folder in which podman keeps all that it keeps; return the environment which says so."""
    folder.mkdir()
    runtime = folder / "runtime"
    runtime.mkdir(mode=0o700)
    (folder / "containers.conf").write_text(_CONTAINERS_CONF.format(folder=folder))
    (folder / "storage.conf").write_text(_STORAGE_CONF.format(folder=folder))
    return {
        **os.environ,
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
        "XDG_DATA_HOME": str(folder),
        "XDG_RUNTIME_DIR": str(runtime),
    }


def podman_options(shop: Workshop, like: Like) -> list[str]:
    options = [f"--oom-score-adj={OOM_SCORE_ADJ}", f"--env={VARIABLE}={VALUE}", f"--workdir={like.cwd}"]
    if like.user:
        options.append(f"--user={like.user}:{like.user}")
    options += [f"--group-add={group}" for group in like.groups]
    if like.capabilities is not None:
        options += ["--cap-drop=ALL", *(f"--cap-add={capability}" for capability in like.capabilities)]
    if like.host_pid:
        options.append("--pid=host")
    if like.cgroup_namespace:
        options.append("--cgroupns=private")
    if shop.cgroups:
        options.append(f"--cgroup-parent=/{shop.name}")
    return options


@contextlib.contextmanager
def podman(shop: Workshop, case: str) -> Iterator[Container]:
    folder = shop.place()
    env = podman_home(folder)
    command = ("podman", f"--runtime-flag=root={folder}/runc")
    name = folder.name

    def remove() -> None:
        shop.run([*command, "rm", "--force", "--ignore", "--time=0", name], env=env)

    with contextlib.ExitStack() as later:
        later.callback(shutil.rmtree, folder)
        later.callback(end_pause_process, folder)
        later.callback(remove)  # what has failed halfway is there too
        options = podman_options(shop, CASES[case])
        shop.run([*command, "run", "--detach", f"--name={name}", *options, "--rootfs", shop.rootfs, *PROGRAM], env=env)
        told = shop.run([*command, "inspect", "--format", "{{.State.Pid}} {{.State.ConmonPid}}", name], env=env)
        pid, conmon = map(int, told.split())
        later.enter_context(gone_afterwards(conmon))  # it cleans up, in our folder, before it ends
        later.callback(remove)
        yield Container("podman", case, pid, (*command, "exec", name), env)


def end_pause_process(folder: Path) -> None:
    """End the process that holds the user namespace of an ordinary user's podman."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        pid = int((folder / "tmp" / "pause.pid").read_text())
        with gone_afterwards(pid):
            os.kill(pid, signal.SIGKILL)


# --- lxc ------------------------------------------------------------------------------------------------------

_LXC_CONFIG = f"""
lxc.uts.name = box
lxc.rootfs.path = dir:{{rootfs}}
lxc.net.0.type = empty
lxc.mount.auto = proc:mixed sys:ro
lxc.autodev = 1
lxc.apparmor.profile = unconfined
lxc.cgroup.relative = 1
lxc.environment = {VARIABLE}={VALUE}
lxc.proc.oom_score_adj = {OOM_SCORE_ADJ}
"""
if not IS_ROOT:
    _LXC_CONFIG += f"lxc.idmap = u 0 {os.getuid()} 1\nlxc.idmap = g 0 {os.getgid()} 1\n"


@contextlib.contextmanager
def lxc(shop: Workshop, case: str) -> Iterator[Container]:
    folder = shop.place()
    name = folder.name
    of_it = ("-P", str(folder), "-n", name)
    log = folder / "log"
    env = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}  # for an ordinary user's lock
    (folder / name).mkdir(parents=True)
    (folder / name / "config").write_text(_LXC_CONFIG.format(rootfs=shop.rootfs))
    with contextlib.ExitStack() as later:
        later.callback(shutil.rmtree, folder)
        later.callback(remove_lxc_lock, folder)
        later.callback(subprocess.run, ["lxc-stop", *of_it, "--kill"], env=env, stderr=subprocess.DEVNULL, check=False)
        try:
            shop.run(
                ["lxc-start", *of_it, "--daemon", f"--logfile={log}", "--logpriority=ERROR", "--", *PROGRAM], env=env
            )
        except CannotStartError as error:
            raise CannotStartError(log.read_text().partition("\n")[0] or str(error)) from None
        pid = int(shop.run(["lxc-info", *of_it, "--pid", "--no-humanize"], env=env))
        # without --clear-env it hands the caller's whole environment to the container
        yield Container("lxc", case, pid, ("lxc-attach", *of_it, "--clear-env", "--"), env)


def remove_lxc_lock(folder: Path) -> None:
    """Remove what lxc leaves in /run; an ordinary user's is in XDG_RUNTIME_DIR."""
    lock = Path(f"/run/lxc/lock{folder}")
    shutil.rmtree(lock, ignore_errors=True)
    with contextlib.suppress(OSError):  # others of this session have theirs there
        lock.parent.rmdir()


# --- those without an exec of their own -----------------------------------------------------------------------


@contextlib.contextmanager
def running(shop: Workshop, command: list[str]) -> Iterator[int]:
    """The pid of a runtime that runs as long as its container does, once that runs."""
    # the program says that it is there; before that, children of the runtime may be anything
    telling = ["/bin/sh", "-c", f"echo ready; exec {' '.join(PROGRAM)}"]
    with subprocess.Popen(
        shop.inside_cgroups([*command, *telling]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                if line.strip() == "ready":
                    break
                said.append(line)
            else:
                raise CannotStartError("".join(said).strip())
            yield process.pid
        finally:
            process.terminate()


def only_child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


@contextlib.contextmanager
def bwrap(shop: Workshop, case: str) -> Iterator[Container]:
    # --dev makes an ordinary user's sandbox one of two user namespaces, one in the other
    mounts = ["--ro-bind", str(shop.rootfs), "/", "--proc", "/proc", "--dev", "/dev"]
    variables = ["--clearenv", "--setenv", VARIABLE, VALUE, "--setenv", "PATH", "/bin"]
    with running(shop, ["bwrap", "--unshare-all", "--die-with-parent", *mounts, *variables]) as pid:
        # a bwrap outside, a bwrap that is process 1 inside, the program
        yield Container("bwrap", case, only_child(only_child(pid)), None)


@contextlib.contextmanager
def nspawn(shop: Workshop, case: str) -> Iterator[Container]:
    machine = shop.place().name.replace("_", "0")  # a host's name has no underscore
    options = [f"--machine={machine}", f"--directory={shop.rootfs}", f"--setenv={VARIABLE}={VALUE}"]
    options += ["--quiet", "--register=no", "--keep-unit", "--private-network", "--read-only", "--timezone=off"]
    options += ["--console=pipe", "--hostname=box", f"--oom-score-adjust={OOM_SCORE_ADJ}"]
    with running(shop, ["systemd-nspawn", *options]) as pid:
        yield Container("systemd-nspawn", case, only_child(pid), None)


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("podman", ("podman", "runc", "conmon", *(() if IS_ROOT else ("newuidmap",))), podman, tuple(CASES)),
        Engine("runc", ("runc",), runc, tuple(CASES)),
        Engine("crun", ("crun",), crun),
        Engine("lxc", ("lxc-start", "lxc-attach"), lxc),
        Engine("bwrap", ("bwrap",), bwrap),
        Engine("systemd-nspawn", ("systemd-nspawn",), nspawn),
    )
}
