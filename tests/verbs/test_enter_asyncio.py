"""``enter`` in a coroutine: right without an await within, told with one."""

from __future__ import annotations

import asyncio
import os

import pytest
from conftest import requires_root

import nsjoin

pytestmark = requires_root


def here():
    return os.readlink("/proc/thread-self/ns/net")


def test_without_an_await_it_is_as_everywhere(target):
    async def main():
        outside = here()
        with nsjoin.enter(target.pid, "net"):
            inside = here()
        await asyncio.sleep(0)
        return outside, inside, here()

    outside, inside, after = asyncio.run(main())
    assert inside == os.readlink(f"/proc/{target.pid}/ns/net")
    assert outside == after != inside


def test_held_across_an_await_it_raises_once_the_thread_is_back(target):
    seen = []

    async def main():
        async def bystander():
            seen.append(here())

        other = asyncio.ensure_future(bystander())
        with pytest.raises(RuntimeError, match="held across an await"):
            with nsjoin.enter(target.pid, "net"):
                await asyncio.sleep(0)
        await other
        return here()

    outside = here()
    assert asyncio.run(main()) == outside
    assert seen == [os.readlink(f"/proc/{target.pid}/ns/net")]  # that is why


def test_the_exception_of_the_block_is_the_context_of_that(target):
    async def main():
        with nsjoin.enter(target.pid, "net"):
            await asyncio.sleep(0)
            raise ZeroDivisionError

    with pytest.raises(RuntimeError, match="held across an await") as caught:
        asyncio.run(main())
    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_what_suspends_cannot_be_decorated(target):
    async def coroutine():
        """Its body runs when it is awaited, after the exit."""

    def generator():
        yield

    async def asynchronous_generator():
        yield

    for function in (coroutine, generator, asynchronous_generator):
        with pytest.raises(TypeError, match="its body would run outside"):
            nsjoin.enter(target.pid, "net")(function)
    assert nsjoin.enter(target.pid, "net")(here)() == os.readlink(f"/proc/{target.pid}/ns/net")


def test_nested_and_in_a_generator(target):
    def generator():
        with nsjoin.enter(target.pid, "net"):
            yield here()

    async def main():
        with nsjoin.enter(target.pid, "uts"), nsjoin.enter(target.pid, "net"):
            assert here() == os.readlink(f"/proc/{target.pid}/ns/net")
        # a generator that is suspended within holds the thread inside: that is the caller's, and ends with close
        suspended = generator()
        inside = next(suspended)
        assert here() == inside
        suspended.close()
        return here() != inside

    assert asyncio.run(main())
