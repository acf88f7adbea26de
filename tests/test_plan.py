"""Every ordering rule as a table: no root, no kernel, no mocks."""

from __future__ import annotations

import pytest

from nsjoin._nstype import BY_NAME
from nsjoin._plan import AGAIN, TRY, Caller, Step, UserNs, Wanted, has_power, order

FIRST = UserNs("first", 1, 0, None)
OURS = UserNs("ours", 2, 1000, FIRST)  # made by uid 1000 from the first
INNER = UserNs("inner", 3, 1000, OURS)  # made inside of ours
THEIRS = UserNs("theirs", 4, 1001, FIRST)

ROOT = Caller("first", 0, True)
USER = Caller("first", 1000, False)
POWERLESS_ROOT = Caller("first", 0, False)

FDS = {"user": 10, "net": 11, "mnt": 12, "pid": 13, "uts": 14}


def want(nstype, owner):
    return Wanted(BY_NAME[nstype], FDS[nstype], owner)


def words(steps):
    """Steps as text: the type, with "?" for one that may fail and "again" for a second try."""
    suffix = {0: "", TRY: "?", AGAIN: " again"}
    names = {row.flag: name for name, row in BY_NAME.items()}
    by_fd = {fd: name for name, fd in FDS.items()}
    texts = []
    for step in steps:
        name = names[step.nstypes]
        if by_fd.get(step.fd) != name:
            name = f"{name} of descriptor {step.fd}"
        texts.append(name + suffix[step.how])
    return texts


@pytest.mark.parametrize(
    ("caller", "user", "power"),
    [
        (ROOT, FIRST, True),
        (ROOT, INNER, True),  # capabilities reach down
        (POWERLESS_ROOT, FIRST, False),
        (POWERLESS_ROOT, OURS, False),
        (USER, FIRST, False),
        (USER, OURS, True),  # its maker, from the parent
        (USER, INNER, True),  # and everything below
        (USER, THEIRS, False),
        (Caller("ours", 1000, True), INNER, True),
        (Caller("ours", 1000, True), FIRST, False),  # never up
        (Caller("ours", 1000, True), THEIRS, False),
        (Caller("inner", 1000, True), OURS, False),
    ],
)
def test_power_over_a_user_namespace_is_as_user_namespaces_7_says(caller, user, power):
    assert has_power(caller, user) is power


@pytest.mark.parametrize(
    ("case", "caller", "wanted", "steps"),
    [
        ("nothing", ROOT, [], []),
        ("root joins what the first user namespace owns", ROOT, [("net", FIRST), ("mnt", FIRST)], ["net", "mnt"]),
        ("root joins all before the user namespace takes its power away", ROOT,
         [("user", OURS), ("net", FIRST), ("mnt", OURS)], ["net", "mnt", "user"]),
        ("the order of the table is kept: mnt last", ROOT, [("uts", OURS), ("pid", OURS), ("mnt", OURS)],
         ["uts", "pid", "mnt"]),
        ("the maker of a user namespace enters it first", USER,
         [("user", OURS), ("net", OURS), ("mnt", OURS)], ["user", "net", "mnt"]),
        ("a user namespace alone", USER, [("user", OURS)], ["user"]),
        ("bubblewrap: an outer user namespace owns all, the program sits in an inner one", USER,
         [("user", INNER), ("net", OURS), ("mnt", OURS)], ["user of descriptor 2", "net", "mnt", "user"]),
        ("some owned by the outer, some by the inner", USER,
         [("user", INNER), ("net", OURS), ("mnt", INNER)], ["user of descriptor 2", "net", "mnt", "user"]),
        ("below the wanted one: no further user namespace is entered", USER,
         [("user", OURS), ("net", INNER)], ["user", "net"]),
        ("no user namespace is entered that was not asked for", USER, [("net", OURS)], ["net"]),
        ("without power the kernel is asked, before and after", USER,
         [("user", OURS), ("net", FIRST)], ["net?", "user", "net again"]),
        ("an unknown owner: tried before and after", USER,
         [("user", OURS), ("net", None), ("mnt", OURS)], ["net?", "user", "mnt", "net again"]),
        ("an unknown owner and no user namespace: once", ROOT, [("net", None)], ["net"]),
        ("a stranger's is left to the kernel to refuse", USER, [("user", THEIRS), ("net", THEIRS)], ["user", "net"]),
    ],
)  # fmt: skip
def test_the_order_is(case, caller, wanted, steps):
    assert words(order([want(nstype, owner) for nstype, owner in wanted], caller)) == steps, case


def test_a_step_is_what_the_joiner_reads():
    (step,) = order([want("net", FIRST)], ROOT)
    assert step == Step(fd=11, nstypes=0x40000000, how=0)
