"""Every rule of what is joined in which order, as rows of tables: no system call, no privileges."""

from __future__ import annotations

import pytest

from nsjoin._engine.job import AGAIN, TRY, Step
from nsjoin._joining.order import Caller, UserNs, Wanted, has_power, lineage, order
from nsjoin._kernel.nstypes import BY_NAME

# Five user namespaces: the first one (root made it), one that alice made in it, one that she made in hers, one that bob
# made in the first, and one that bob made in alice's.
ROOT, ALICE, BOB = 0, 1000, 1001
FIRST = UserNs("first", 10, ROOT, None)
OUTER = UserNs("outer", 11, ALICE, FIRST)
INNER = UserNs("inner", 12, ALICE, OUTER)
OTHER = UserNs("other", 13, BOB, FIRST)
GUEST = UserNs("guest", 14, BOB, OUTER)
#: OUTER as it is seen by someone inside, who sees no further up
OUTER_FROM_WITHIN = UserNs("outer", 11, ROOT, None)
INNER_FROM_WITHIN = UserNs("inner", 12, ROOT, OUTER_FROM_WITHIN)

AS_ROOT = Caller("first", ROOT, True)
AS_ALICE = Caller("first", ALICE, False)
AS_BOB = Caller("first", BOB, False)
ROOT_WITHOUT_CAPS = Caller("first", ROOT, False)
ALICE_WITH_CAPS = Caller("first", ALICE, True)
IN_OUTER = Caller("outer", ROOT, True)
IN_OUTER_AS_USER = Caller("outer", 1, False)
IN_INNER = Caller("inner", ROOT, True)


def want(nstype, owner, fd):
    return Wanted(BY_NAME[nstype], fd, owner)


def user(owner):
    return Wanted(BY_NAME["user"], 20 if owner is None else owner.fd + 10, owner)


def words(steps):
    """``steps`` as text: the type and descriptor of each, with ? where EPERM is allowed and + where it is a retry."""
    names = {row.flag: name for name, row in BY_NAME.items()}
    marks = {0: "", TRY: "?", AGAIN: "+"}
    return " ".join(f"{names[step.nstypes]}{step.fd}{marks[step.how]}" for step in steps)


# --- who has power over which user namespace -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caller", "powerful"),
    [
        (AS_ROOT, "first outer inner other guest"),
        (ALICE_WITH_CAPS, "first outer inner other guest"),  # capabilities count, not the uid
        (ROOT_WITHOUT_CAPS, ""),  # and root without them has none: nothing here was made by uid 0 below the first
        (AS_ALICE, "outer inner guest"),  # what she made in our namespace, and all below it
        (AS_BOB, "other"),  # guest he made too, but not from the namespace that he is in now
        (Caller("first", 1002, False), ""),
        (IN_OUTER, "outer inner guest"),  # never upwards or sideways
        (IN_OUTER_AS_USER, ""),
        (Caller("outer", ALICE, False), "inner"),
        (IN_INNER, "inner"),
        (Caller("elsewhere", ROOT, True), ""),
    ],
)
def test_power_comes_from_capabilities_here_or_from_having_made_a_child(caller, powerful):
    assert " ".join(ns.id for ns in (FIRST, OUTER, INNER, OTHER, GUEST) if has_power(caller, ns)) == powerful


def test_the_maker_of_the_callers_own_namespace_has_no_power_over_it():
    # the rule is about the parent: in the namespace itself, only capabilities count
    assert not has_power(Caller("outer", ALICE, False), OUTER)


def test_power_over_a_namespace_whose_ancestors_are_not_seen():
    assert has_power(IN_OUTER, INNER_FROM_WITHIN)
    assert not has_power(AS_ROOT, INNER_FROM_WITHIN)  # the caller's own does not appear in it
    assert not has_power(AS_ALICE, UserNs("x", 1, ALICE, None))


def test_an_unknown_maker_gives_no_power():
    assert not has_power(AS_ALICE, UserNs("x", 1, None, FIRST))


def test_lineage_goes_from_a_namespace_to_the_outermost_that_is_seen():
    assert [ns.id for ns in lineage(INNER)] == ["inner", "outer", "first"]
    assert [ns.id for ns in lineage(FIRST)] == ["first"]
    assert list(lineage(None)) == []


# --- the order -----------------------------------------------------------------------------------------------------

ORDERS = {
    "nothing": (AS_ROOT, [], ""),
    "root, no user namespace": (AS_ROOT, [want("net", FIRST, 3), want("mnt", FIRST, 4)], "net3 mnt4"),
    "the order of the caller's list is kept": (AS_ROOT, [want("mnt", FIRST, 4), want("net", FIRST, 3)], "mnt4 net3"),
    "root joins from outside what another user namespace owns": (AS_ROOT, [want("net", INNER, 3)], "net3"),
    "root, all owned by the target's user namespace": (
        AS_ROOT,
        [user(OUTER), want("net", OUTER, 3), want("mnt", OUTER, 4)],
        "net3 mnt4 user21",
    ),
    "root, net owned by the first one: before user, where it would be too late": (
        AS_ROOT,
        [user(OUTER), want("net", FIRST, 3), want("mnt", OUTER, 4)],
        "net3 mnt4 user21",
    ),
    "the owner: user first, then what it owns": (
        AS_ALICE,
        [user(OUTER), want("net", OUTER, 3), want("mnt", OUTER, 4)],
        "user21 net3 mnt4",
    ),
    "the owner asks for the user namespace alone": (AS_ALICE, [user(OUTER)], "user21"),
    "root asks for the user namespace alone": (AS_ROOT, [user(OUTER)], "user21"),
    "the owner, two levels: outer owns all, inner is the program's": (
        AS_ALICE,
        [user(INNER), want("net", OUTER, 3), want("mnt", OUTER, 4)],
        "user11 net3 mnt4 user22",
    ),
    "the owner, each level owns something": (
        AS_ALICE,
        [user(INNER), want("mnt", INNER, 4), want("net", OUTER, 3)],
        "user11 mnt4 net3 user22",
    ),
    "the owner, two levels, but outer owns nothing that is wanted: it is not entered": (
        AS_ALICE,
        [user(INNER), want("mnt", INNER, 4)],
        "user22 mnt4",
    ),
    "the owner, two levels, nothing but the inner user namespace": (AS_ALICE, [user(INNER)], "user22"),
    "root, two levels: everything from outside, user last": (
        AS_ROOT,
        [user(INNER), want("net", OUTER, 3), want("mnt", INNER, 4)],
        "net3 mnt4 user22",
    ),
    "the owner, and something of the first one: tried last, since nothing can be joined without CAP_SYS_ADMIN here": (
        AS_ALICE,
        [user(OUTER), want("net", FIRST, 3), want("mnt", OUTER, 4)],
        "user21 mnt4 net3",
    ),
    "an unknown owner, with user: the same": (
        AS_ALICE,
        [user(OUTER), want("net", None, 3), want("mnt", OUTER, 4)],
        "user21 mnt4 net3",
    ),
    "an unknown owner, as root, with user: tried before, and again after": (
        AS_ROOT,
        [user(OUTER), want("net", None, 3)],
        "net3? user21 net3+",
    ),
    "an unknown owner, no user namespace: simply tried": (AS_ROOT, [want("net", None, 3)], "net3"),
    "no power at all: tried, so that the kernel says why not": (AS_BOB, [want("net", OUTER, 3)], "net3"),
    "no power, no user asked for: no user namespace is entered unasked": (AS_ALICE, [want("net", OUTER, 3)], "net3"),
    "a stranger's user namespace: the kernel says no": (
        AS_BOB,
        [user(OUTER), want("net", OUTER, 3)],
        "user21 net3",
    ),
    "a user namespace whose owner is not known": (
        AS_ROOT,
        [user(None), want("net", FIRST, 3), want("mnt", None, 4)],
        "mnt4? net3 user20 mnt4+",
    ),
    "what another user's namespace owns, beside ours": (
        AS_ALICE,
        [user(OUTER), want("net", OTHER, 3), want("mnt", OUTER, 4)],
        "user21 mnt4 net3",
    ),
    "from inside outer, with capabilities: join first, the inner user last": (
        IN_OUTER,
        [user(INNER_FROM_WITHIN), want("net", OUTER_FROM_WITHIN, 3), want("mnt", INNER_FROM_WITHIN, 4)],
        "net3 mnt4 user22",
    ),
    "from inside outer, as its ordinary user who made inner": (
        Caller("outer", 1, False),
        [user(UserNs("inner", 12, 1, OUTER_FROM_WITHIN)), want("mnt", UserNs("inner", 12, 1, OUTER_FROM_WITHIN), 4)],
        "user22 mnt4",
    ),
    "ordinary, with nothing ready at first, cannot join without CAP_SYS_ADMIN at home": (
        AS_ALICE,
        [want("uts", OUTER, 3), want("net", OUTER, 4)],
        "uts3 net4",
    ),
}


@pytest.mark.parametrize(("caller", "wanted", "steps"), ORDERS.values(), ids=ORDERS)
def test_the_order(caller, wanted, steps):
    assert words(order(wanted, caller)) == steps


@pytest.mark.parametrize(("caller", "wanted"), [row[:2] for row in ORDERS.values()], ids=ORDERS)
def test_every_namespace_is_joined_and_the_wanted_user_namespace_is_where_it_ends(caller, wanted):
    made = order(wanted, caller)
    once = [step for step in made if step.how != TRY]  # a step that may fail is repeated
    for one in wanted:
        assert any((step.fd, step.nstypes) == (one.fd, one.row.flag) for step in once)
    tried = [(step.fd, step.nstypes) for step in made if step.how == TRY]
    again = [(step.fd, step.nstypes) for step in made if step.how == AGAIN]
    assert tried == again
    entered = [step.fd for step in made if step.nstypes == BY_NAME["user"].flag]
    goal = [one.fd for one in wanted if one.row.name == "user"]
    assert entered[-1:] == goal
    assert len(entered) == len(set(entered))


@pytest.mark.parametrize(("caller", "wanted"), [row[:2] for row in ORDERS.values()], ids=ORDERS)
def test_the_order_of_what_is_wanted_changes_nothing_but_the_order_of_equals(caller, wanted):
    """Wherever the user namespace stands in the list, the steps are those of its place in the table."""
    rest = [one for one in wanted if one.row.name != "user"]
    goal = [one for one in wanted if one.row.name == "user"]
    assert order(rest + goal, caller) == order(goal + rest, caller)


def test_a_step_is_the_descriptor_and_the_flag():
    assert order([want("net", FIRST, 3)], AS_ROOT) == [Step(3, 0x40000000, 0)]
    assert (TRY, AGAIN) == (1, 2)  # enum nsjoin_how
