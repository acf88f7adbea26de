"""A pytest fixture that gives each test a network of its own: any address and port is free, and nobody else is there.

Sockets are made inside and used by the test, which stays outside. Runs as root and as an ordinary user, with
``pytest examples/pytest_own_network.py``; in your tests the fixture goes into conftest.py.
"""

from __future__ import annotations

import importlib.util
import socket
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from _target import new_target, require_program

import nsjoin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

if importlib.util.find_spec("pytest") is None:
    print("skipped: pytest is not installed")
    sys.exit(77)
import pytest

require_program("ip", "iproute2")
HTTP = ("127.0.0.1", 80)


@pytest.fixture
def in_own_network() -> Iterator[Callable[..., Any]]:
    """Calls a function in a network that is this test's own: ``in_own_network(socket.create_server, address)``."""
    with new_target("--net", setup="ip link set lo up") as target:
        yield partial(nsjoin.call_in, target)


@pytest.fixture
def another_network() -> Iterator[Callable[..., Any]]:
    """A second one, of the same test."""
    with new_target("--net", setup="ip link set lo up") as target:
        yield partial(nsjoin.call_in, target)


def test_a_server_on_the_port_that_is_in_use_elsewhere(
    in_own_network: Callable[..., Any], another_network: Callable[..., Any]
) -> None:
    with in_own_network(socket.create_server, HTTP) as server, another_network(socket.create_server, HTTP) as other:
        assert server.getsockname() == other.getsockname() == HTTP


def test_a_client_reaches_the_server_of_its_network(in_own_network: Callable[..., Any]) -> None:
    with in_own_network(socket.create_server, HTTP) as server, in_own_network(socket.create_connection, HTTP) as client:
        connection, _ = server.accept()
        with connection:
            client.sendall(b"hello")
            assert connection.recv(100) == b"hello"


def test_nothing_of_it_is_left_for_the_next_test(in_own_network: Callable[..., Any]) -> None:
    with in_own_network(socket.create_server, HTTP) as server:
        assert server.getsockname() == HTTP


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "--quiet", "--override-ini=addopts="]))
