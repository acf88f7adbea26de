"""Programs in real containers: what each runtime here starts, beside the engine's own exec (``tests/containers``)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from attempts import JOINS_BY_PIDFD
from conftest import IS_ROOT
from containers import compare, workshop
from containers.engines import CASES, ENGINES, OOM_SCORE_ADJ, PROGRAM, VALUE, VARIABLE
from containers.fields import COLUMNS, parse, reader
from test_examples import PODMAN_EXEC

import nsjoin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from containers.engines import Container
    from containers.workshop import Workshop

ALL = [(engine.name, case) for engine in ENGINES.values() for case in engine.cases]


@pytest.fixture(scope="module")
def shop() -> Iterator[Workshop]:
    """The folder and cgroup of all containers; that nothing remains of them is checked when it is removed."""
    try:
        with workshop.workshop() as shop:
            yield shop
    except workshop.CannotStartError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=ALL, ids=lambda pair: ", ".join(pair))
def box(request: pytest.FixtureRequest, shop: Workshop) -> Iterator[Container]:
    """Each container in turn."""
    engine, case = request.param
    with running(shop, engine, case) as container:
        yield container


@pytest.fixture(scope="module")
def row(box: Container) -> dict[str, compare.Cell]:
    """The container's row of the table."""
    if box.own_exec is not None and not JOINS_BY_PIDFD:  # lxc-attach knows no other way
        refused = compare.by_engine(box, ["/bin/true"])
        if refused.returncode != 0:
            pytest.skip(f"{box.engine}'s own exec does not work here: {refused.stderr}")
    return compare.compare(box)


class running:  # noqa: N801 - used as a function
    """``with running(shop, "runc")``: a container, or a skipped test that says why there is none."""

    def __init__(self, shop: Workshop, engine: str, case: str = "plain") -> None:
        self._what = f"{engine}, {case}"
        self._manager = ENGINES[engine].start(shop, case)

    def __enter__(self) -> Container:
        try:
            return self._manager.__enter__()
        except workshop.CannotStartError as error:
            pytest.skip(f"{self._what}: does not start here: {error}")

    def __exit__(self, *exception: object) -> None:
        self._manager.__exit__(*exception)


def output(box: Container, *argv: str, **keywords: object) -> str:
    return nsjoin.run_in(box.pid, argv, stdout=subprocess.PIPE, text=True, check=True, **keywords).stdout


# --- inside ------------------------------------------------------------------------------------------------------


def test_ps_shows_the_container_and_itself(box):
    lines = output(box, "/bin/ps").splitlines()
    assert any(line.endswith(" ".join(PROGRAM)) for line in lines)
    assert any(line.endswith("/bin/ps") for line in lines)
    if not CASES[box.case].host_pid:
        assert len(lines) <= 4, lines  # a head, bwrap's own process 1 perhaps, and the two


def test_a_program_is_a_direct_child_with_a_pid_of_the_container(box):
    with nsjoin.spawn_in(box.pid, ["/bin/sh", "-c", "echo $$; read end"], stdin=-1, stdout=-1, text=True) as process:
        inside = int(process.stdout.readline())
        with open(f"/proc/{process.pid}/status") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        process.communicate("\n")
    assert int(status["PPid"]) == os.getpid()
    assert int(status["NSpid"].split()[-1]) == inside
    assert (inside == process.pid) == CASES[box.case].host_pid


def test_a_signal_that_the_program_handles_arrives(box):
    program = "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.01; done"
    with nsjoin.spawn_in(box.pid, ["/bin/sh", "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.communicate(timeout=60)[0] == "got it\n"
    assert process.returncode == 3


def test_what_an_ordinary_user_starts_has_a_user_namespace_of_its_own(box):
    own = os.readlink(f"/proc/{box.pid}/ns/user") != os.readlink("/proc/self/ns/user")
    assert own == (not IS_ROOT or box.engine == "bwrap")


@pytest.mark.parametrize("column", ["status", "signal", *COLUMNS])
def test_like_the_target_it_is_as_the_engines_own_exec_makes_it(row, column):
    assert row[column].word in (compare.SAME, compare.AS_TARGET, compare.LACKS), row[column].notes


# --- what the cases are about --------------------------------------------------------------------------------------
# Without these a comparison could be one of two things that are both as they are by default.


EXPECTED = {
    "as user 1000": {"Uid": "1000 1000 1000 1000", "Gid": "1000 1000 1000 1000", "CapEff": "0000000000000000"},
    "no capabilities": {"CapPrm": "0000000000000000", "CapBnd": "0000000000000000"},
    "two capabilities": {"CapPrm": "0000000000002001", "CapEff": "0000000000002001", "CapBnd": "0000000000002001"},
    "in a folder": {"cwd": "/work/place"},
    "host's pids": {"ns/pid": os.readlink("/proc/self/ns/pid")},
}


@pytest.mark.parametrize("engine", ["podman", "runc"])
@pytest.mark.parametrize("case", EXPECTED)
def test_like_the_target_it_has_what_the_container_was_started_with(shop, engine, case):
    with running(shop, engine, case) as box:
        fields = parse(output(box, *reader(), like_target=True))
    assert {name: fields[name] for name in EXPECTED[case]} == EXPECTED[case]
    assert fields["oom_score_adj"] == str(OOM_SCORE_ADJ)
    assert f"{VARIABLE}={VALUE}" in fields["environ"].splitlines()
    assert set(map(str, CASES[case].groups)) <= set(fields["Groups"].split())


@pytest.mark.skipif(not IS_ROOT, reason="an ordinary user has no power over cgroups here")
@pytest.mark.parametrize("engine", ["podman", "runc", "lxc"])
def test_like_the_target_it_is_in_the_containers_cgroups(shop, engine):
    with running(shop, engine) as box:
        program = ["/bin/sh", "-c", "echo ready; read end"]
        with nsjoin.spawn_in(box.pid, program, stdin=-1, stdout=-1, text=True, like_target=True) as process:
            assert process.stdout.readline() == "ready\n"
            with open(f"/proc/{process.pid}/cgroup") as ours, open(f"/proc/{box.pid}/cgroup") as its:
                here, there = ours.read(), its.read()
    assert here == there
    assert shop.name in here


KEYWORDS = {
    "env": ("environ",),
    "cwd": ("cwd",),
    "user": ("Uid",),
    "group": ("Gid",),
    "extra_groups": ("Groups",),
    "cgroup": ("cgroup",),
    "oom_score_adj": ("oom_score_adj",),
    "no_new_privs": ("NoNewPrivs",),
    "capabilities": ("CapPrm", "CapEff", "CapBnd", "CapAmb"),
}


#: Where the target has something else than root by default; not user 1000's capabilities: root gets the bounding set at
#: exec, which is a gain over those, and after a gain nobody but root of the host may read /proc/PID/environ.
OTHER_CASE = {"cwd": "in a folder", "capabilities": "two capabilities"}


@pytest.mark.skipif(not IS_ROOT, reason="the ordinary user's runc has mapped no id but his own")
@pytest.mark.parametrize("keyword", KEYWORDS)
def test_each_property_of_the_target_alone_is_as_runc_exec_makes_it(shop, keyword):
    with running(shop, "runc", OTHER_CASE.get(keyword, "as user 1000")) as box:
        plain = compare.fields_of(compare.by_nsjoin(box, reader()))
        alone = compare.fields_of(compare.by_nsjoin(box, reader(), **{keyword: nsjoin.TARGET}))
        theirs = compare.fields_of(compare.by_engine(box, reader()))
    changed = {name for name in plain if plain[name] != alone[name]}
    assert set(KEYWORDS[keyword]) & changed, changed
    for name in KEYWORDS[keyword]:
        assert alone[name] == theirs[name], name


# --- the example -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("pwd; id -u; exit 7", 7, "/work/place\n0\n"),
        (f"echo ${VARIABLE}", 0, f"{VALUE}\n"),
        ("kill -TERM $$", 128 + 15, ""),
    ],
)
def test_the_example_runs_a_program_in_a_podman_container_by_name(shop, program, status, said):
    with running(shop, "podman", "in a folder") as box:
        command = [sys.executable, "-W", "error", str(PODMAN_EXEC), box.own_exec[-1], "/bin/sh", "-c", program]
        result = subprocess.run(command, env=box.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert (result.returncode, result.stdout) == (status, said)


# --- the test of the tests -----------------------------------------------------------------------------------------


def test_what_is_left_behind_is_found(monkeypatch):
    monkeypatch.setattr(workshop, "PATIENCE", 0)
    monkeypatch.setattr(workshop, "build_root_file_system", lambda root: None)  # it needs busybox, and nothing starts
    with contextlib.ExitStack() as stack:
        with pytest.raises(AssertionError, match="process [0-9]+: sh -c echo; read end"), workshop.workshop() as shop:
            command = ["sh", "-c", "echo; read end", shop.name]
            left = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(left)
            # execve(2) closes what is close-on-exec, and so lets Popen return, before /proc/PID/cmdline says anything
            assert left.stdout.readline() == b"\n"
    assert not shop.folder.exists()
    assert not any(cgroup.exists() for cgroup in shop.cgroups)


def test_a_difference_is_found():
    has = dict.fromkeys(("CapEff", "Seccomp", "environ"), "1")
    other = dict.fromkeys(has, "2")
    assert compare.compare_field("runc", "CapEff", has, other, other).word == compare.NOT_SO
    assert compare.compare_field("runc", "CapEff", has, has, other).word == compare.SAME
    assert compare.compare_field("runc", "environ", has, other, has).word == compare.NOT_SO
    assert compare.compare_field("podman", "environ", has, other, has).word == compare.AS_TARGET
    assert compare.compare_field("bwrap", "CapEff", has, None, has).word == compare.AS_TARGET
    assert compare.compare_field("bwrap", "CapEff", has, None, other).word == compare.NOT_SO
    assert compare.compare_field("podman", "Seccomp", has, other, other).word == compare.LACKS
