"""Real namespaces of made-up ownership: what the library joins is what the kernel lets be joined in some order."""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import TYPE_CHECKING, NamedTuple

import pytest
from child import become_ordinary_user, in_child
from conftest import requires_namespaces_of_pidfds, requires_root
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import nsjoin
from nsjoin._kernel import calls
from nsjoin._kernel.nstypes import BY_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EXAMPLES = int(os.environ.get("NSJOIN_EXAMPLES", "0"))
TYPES = ("net", "uts", "ipc", "mnt", "cgroup")


class World(NamedTuple):
    """User namespaces by the index of their parent, 0 for ours; by type, who owns one; which user one is joined."""

    parents: tuple[int, ...]
    owners: dict[str, int]
    user: int


@st.composite
def worlds(draw: st.DrawFn) -> World:
    depth = draw(st.integers(1, 2))
    parents = tuple(draw(st.integers(0, index)) for index in range(depth))
    types = draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=3, unique=True))
    return World(parents, {nstype: draw(st.integers(0, depth)) for nstype in types}, draw(st.integers(0, depth)))


def is_accepted(order: Sequence[nsjoin.Namespace]) -> bool:
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            for namespace in order:
                calls.setns(namespace.fileno(), BY_NAME[namespace.nstype].flag)
            os._exit(0)
        os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def orders(namespaces: list[nsjoin.Namespace], users: list[nsjoin.Namespace]) -> Iterator[tuple[nsjoin.Namespace, ...]]:
    """Where a user namespace is joined, others may be on the way to it."""
    joined = [namespace for namespace in namespaces if namespace.nstype == "user"]
    others = [user for user in users if user not in joined] if joined else []
    for number in range(len(others) + 1):
        for on_the_way in itertools.combinations(others, number):
            for order in itertools.permutations([*namespaces, *on_the_way]):
                if [namespace for namespace in order if namespace.nstype == "user"][-1:] == joined:
                    yield order


def build(world: World, stack: contextlib.ExitStack) -> tuple[list[nsjoin.Namespace], list[nsjoin.Namespace]]:
    """What is to be joined, and all user namespaces."""
    users: list[nsjoin.Namespace] = []
    for parent in world.parents:
        users.append(stack.enter_context(nsjoin.create("user", user=users[parent - 1] if parent else None)))
    owners = [None, *users]
    made = [stack.enter_context(nsjoin.create(nstype, user=owners[owner])) for nstype, owner in world.owners.items()]
    return [*made, users[world.user - 1]] if world.user else made, users


def check(world: World) -> None:
    """Library and kernel agree on whether it can be joined."""
    with contextlib.ExitStack() as stack:
        namespaces, users = build(world, stack)
        if any(is_accepted(order) for order in orders(namespaces, users)):
            assert nsjoin.run_in(namespaces, ["true"]).returncode == 0
        else:
            with pytest.raises(nsjoin.JoinPermissionError) as caught:
                nsjoin.run_in(namespaces, ["true"])
            assert caught.value.step == "setns"
            assert caught.value.reason


made_up = settings(
    max_examples=EXAMPLES or 30,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@requires_root
@requires_namespaces_of_pidfds
@made_up
@given(worlds())
@example(World((0, 1), {"net": 2, "uts": 0, "mnt": 1}, 2))
def test_root_joins_what_the_kernel_lets_him_join(world):
    check(world)


@requires_namespaces_of_pidfds
@made_up
@given(worlds())
@example(World((0, 1), {"net": 2, "uts": 1}, 1))
def test_an_ordinary_user_joins_what_the_kernel_lets_him_join(world):
    # what he owns himself he can make only in a user namespace of his
    his = world._replace(owners={nstype: max(owner, 1) for nstype, owner in world.owners.items()})
    in_child(lambda: check(his), become_ordinary_user)
