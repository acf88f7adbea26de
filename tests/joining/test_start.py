"""What is tried again, what a way follows from, and which types one setns(2) joins: tables, no privileges."""

from __future__ import annotations

import errno
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from nsjoin._engine.job import NO_ATTRIBUTES, At, Cgroup, Failed, Step, Way, Witness
from nsjoin._joining import select as select_
from nsjoin._joining.select import Selection
from nsjoin._joining.start import AGAIN, Attempt, Relaxed, Request, relaxed_by, way_to
from nsjoin._kernel import abi
from nsjoin._kernel.nstypes import BY_NAME, NSTYPES, mask
from nsjoin._kernel.thread import FIRST_USER_NAMESPACE

V1, V2 = Cgroup(20, 21, is_v2=False), Cgroup(22, 23, is_v2=True)
BY_PIDFD = Selection((), [], by_pidfd=True)
BY_DESCRIPTORS = Selection((), [])
NOT_PREPARED = Attempt()
#: what earlier attempts of a start have changed, one of each
EVERYTHING = Relaxed(by_descriptors=True, moves_to_cgroup=True, go_home=True, empty_environ=True)


def rows(names: str):
    return tuple(BY_NAME[name] for name in names.split())


def attempt(selection=BY_PIDFD, **way):
    return Attempt(Way(**way), selection)


# --- what is tried again -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "number", "last", "change"),
    [
        (At.ENV, errno.EAGAIN, attempt(), {"empty_environ": True}),
        (At.WITNESS, errno.EAGAIN, attempt(), {}),
        (At.WITNESS, errno.EAGAIN, attempt(BY_DESCRIPTORS), {}),
        (At.WITNESS, errno.EAGAIN, NOT_PREPARED, {}),  # has_left, before there is a selection
        *[
            (At.JOIN, number, attempt(), {"by_descriptors": True})
            for number in sorted(abi.absent("setns with a pidfd") or ())
        ],
        (At.CLONE, errno.EACCES, attempt(born_in=V2), {"moves_to_cgroup": True}),
        (At.CLONE, errno.ENOMEM, attempt(born_in=V2), {"moves_to_cgroup": True}),
        (At.CLONE, 0, attempt(born_in=V2), {"moves_to_cgroup": True}),  # killed, as in a cgroup that is being killed
        (At.LAUNCH, errno.EXDEV, attempt(at_home=True), {"go_home": True}),
    ],
)
def test_a_failure_that_another_attempt_may_avoid(at, number, last, change):
    assert relaxed_by(Failed(at, 0, number), last, Relaxed()) == Relaxed(**change)


@pytest.mark.parametrize(
    ("at", "number", "last"),
    [
        (At.ENV, errno.E2BIG, attempt()),
        (At.ENV, 0, attempt()),
        (At.ENV, errno.EAGAIN, attempt(attributes=NO_ATTRIBUTES._replace(empty_environ=True))),
        (At.WITNESS, errno.ESRCH, attempt()),
        (At.WITNESS, 0, attempt()),
        *[(At.JOIN, number, attempt(BY_DESCRIPTORS)) for number in sorted(abi.absent("setns with a pidfd") or ())],
        (At.JOIN, errno.ESRCH, attempt()),
        (At.JOIN, 0, attempt()),
        (At.JOIN, errno.EPERM, NOT_PREPARED),
        (At.CLONE, errno.EAGAIN, attempt()),
        (At.CLONE, 0, attempt()),
        (At.LAUNCH, errno.EXDEV, attempt(go_home=True)),
        (At.LAUNCH, errno.EACCES, attempt()),
        (At.CGROUP, errno.EAGAIN, attempt()),
        (At.EXEC, errno.EAGAIN, attempt()),
    ],
)
def test_a_failure_that_no_other_attempt_can_avoid(at, number, last):
    assert relaxed_by(Failed(at, 0, number), last, Relaxed()) is None


@pytest.mark.parametrize("at", [At.ENV, At.WITNESS])
def test_after_a_change_of_the_target_one_setns_is_tried_before_descriptors(at):
    relaxed = relaxed_by(Failed(at, 0, errno.EAGAIN), attempt(BY_DESCRIPTORS), EVERYTHING)
    assert relaxed == EVERYTHING._replace(by_descriptors=False)


def test_each_row_changes_what_an_attempt_knows():
    assert all(set(row.relax) <= set(Relaxed._fields) for row in AGAIN)
    assert len({row.at for row in AGAIN}) == len(AGAIN)


# --- the way that follows ------------------------------------------------------------------------------------------


def way(names="", root=-1, relaxed=None, attributes=NO_ATTRIBUTES, **request):
    return way_to(
        Request(None, **request), relaxed or Relaxed(), Selection(rows(names), [Step(9, 1)]), attributes, root
    )


@pytest.mark.parametrize(
    ("names", "request_", "fork", "at_home"),
    [
        ("net mnt", {}, False, False),
        ("pid", {}, True, True),
        ("pid", {"fork": False}, False, True),
        ("time", {}, False, False),  # joined by setns(2), unlike one that unshare(2) makes
        ("", {"unshare": mask(rows("pid"))}, True, True),
        ("", {"unshare": mask(rows("time"))}, True, False),
        ("", {"unshare": mask(rows("time")), "fork": False}, False, False),
        ("", {"unshare": mask(rows("net"))}, False, False),
    ],
)
def test_a_fork_follows_from_the_types(names, request_, fork, at_home):
    made = way(names, **request_)
    assert (made.fork, made.at_home) == (fork, at_home)


@pytest.mark.parametrize(
    ("names", "cgroups", "relaxed", "born_in"),
    [
        ("pid", [V1, V2], Relaxed(), V2),
        ("pid", [V1], Relaxed(), None),  # CLONE_INTO_CGROUP is for version 2
        ("pid", [V2], Relaxed(moves_to_cgroup=True), None),
        ("pid user", [V2], Relaxed(), None),  # it has the credentials of that user namespace by then
        ("net", [V2], Relaxed(), None),  # without a fork nothing is born
    ],
)
def test_a_program_is_born_in_its_cgroup_where_that_may_be(names, cgroups, relaxed, born_in):
    made = way(names, relaxed=relaxed, attributes=NO_ATTRIBUTES._replace(cgroups=cgroups))
    assert made.born_in == born_in
    assert made.attributes.cgroups == cgroups


@pytest.mark.parametrize(
    ("names", "root", "cwd", "checked"),
    [("net", -1, -1, False), ("mnt", -1, -1, True), ("net", 8, -1, True), ("net", -1, 7, True)],
)
def test_the_working_directory_is_checked_where_it_may_be_outside_of_the_root(names, root, cwd, checked):
    made = way(names, root=root, attributes=NO_ATTRIBUTES._replace(cwd=cwd))
    assert (made.check_cwd, made.root) == (checked, root)


def test_the_rest_of_a_way_is_taken_as_it_is():
    relaxed = Relaxed(go_home=True, empty_environ=True)
    selection = Selection(rows("net"), [Step(9, 1)], by_pidfd=True, witness=Witness(9, 3))
    made = way_to(Request(None, unshare=4), relaxed, selection, NO_ATTRIBUTES, -1)
    assert (made.joins, made.witness, made.unshare) == ([Step(9, 1)], Witness(9, 3), 4)
    assert made.go_home
    assert made.attributes.empty_environ
    assert not NO_ATTRIBUTES.empty_environ


# --- which types one setns(2) joins --------------------------------------------------------------------------------

PIDFD, DEEPER = 9, FIRST_USER_NAMESPACE - 1
OURS = {row: 100 + index for index, row in enumerate(NSTYPES)}


class _Process:
    """A target whose namespaces of the types ``elsewhere`` are other ones."""

    def __init__(self, elsewhere):
        self.pidfd = PIDFD
        self.elsewhere = elsewhere

    def inodes(self, asked):
        return tuple(OURS[row] + 1000 * (row in self.elsewhere) for row in asked)

    def words(self):
        return "process 1"


@pytest.mark.parametrize(
    ("is_admin", "own_user", "elsewhere", "wanted", "joined", "looks_again"),
    [
        # power over all: only what setns(2) refuses, or what does harm, is left out
        (
            True,
            FIRST_USER_NAMESPACE,
            "net",
            None,
            " ".join(row.name for row in NSTYPES if row.name not in ("user", "mnt")),
            True,
        ),
        (True, FIRST_USER_NAMESPACE, "mnt user", "mnt user net", "mnt user net", False),
        (True, FIRST_USER_NAMESPACE, "", "mnt net", "net", False),
        (True, FIRST_USER_NAMESPACE, "", "user", "", False),
        # no power over all, or not known to have it: only the types that differ
        (False, FIRST_USER_NAMESPACE, "net", None, "net", True),
        (True, DEEPER, "net", "net uts", "net", False),
        (True, DEEPER, "net user", "net user", "net user", False),
        (True, DEEPER, "net", "net user", "net", True),
        (False, DEEPER, "", None, "", False),
    ],
)
def test_types_that_one_setns_joins(monkeypatch, is_admin, own_user, elsewhere, wanted, joined, looks_again):
    process = _Process(rows(elsewhere))

    def look(_pidfd, _requests):
        never = rows("user mnt")
        ours = [own_user, OURS[never[1]]]
        return is_admin, ours, [our + (row in process.elsewhere) for row, our in zip(never, ours)]

    monkeypatch.setattr(select_.calls, "look", look)
    monkeypatch.setattr(select_, "own_inodes", lambda asked: tuple(OURS[row] for row in asked))
    with ExitStack() as stack:
        target = SimpleNamespace(process=process)
        found = select_.select(target, None if wanted is None else rows(wanted), 0, False, stack)
    assert {row.name for row in found.rows} == set(joined.split())
    assert found.by_pidfd
    assert found.joins == ([Step(PIDFD, mask(found.rows))] if joined else [])
    assert found.witness == (Witness(PIDFD, own_user) if looks_again else None)


def test_no_pid_namespace_is_joined_where_a_new_one_is_made(monkeypatch):
    monkeypatch.setattr(select_, "own_inodes", lambda asked: tuple(OURS[row] for row in asked))
    monkeypatch.setattr(select_.calls, "look", lambda *_: (False, [DEEPER, 1], [DEEPER, 1]))
    with ExitStack() as stack:
        target = SimpleNamespace(process=_Process(rows("pid net")))
        found = select_.select(target, rows("pid net"), mask(rows("pid")), False, stack)
    assert found.rows == rows("net")


def test_without_an_answer_of_the_kernel_who_may_have_left_is_joined_by_descriptors(monkeypatch):
    def look(*_):
        raise OSError(errno.ENOTTY, "")

    monkeypatch.setattr(select_, "own_inodes", lambda asked: tuple(OURS[row] for row in asked))
    monkeypatch.setattr(select_.calls, "look", look)
    assert select_._to_join(_Process(rows("net")), None) is None
    assert select_._to_join(_Process(rows("net")), rows("net")) == (rows("net"), None)
    found = select_._to_join(_Process(rows("net user")), None)
    assert found is not None
    assert (set(found[0]), found[1]) == (set(rows("net user")), None)
