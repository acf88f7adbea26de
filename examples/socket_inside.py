"""A socket belongs for ever to the net namespace in which it was made. So enter, make it, leave, and use it outside.

Needs root.
"""

from __future__ import annotations

import fcntl
import socket
import struct

from _target import new_target, require_root

import nsjoin


def bring_loopback_up() -> None:
    """What ``ip link set lo up`` does: in a new net namespace even the loopback is down."""
    siocsifflags, iff_up = 0x8914, 1
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, siocsifflags, struct.pack("16sh22x", b"lo", iff_up))


require_root()
with new_target("--net") as target, socket.create_server(("127.0.0.1", 0)) as outside:
    address = outside.getsockname()

    with nsjoin.enter(target, "net"):
        bring_loopback_up()
        # The same address and port as outside: in one and the same net namespace this is "Address already in use".
        inside = socket.create_server(address)
        client = socket.create_connection(address)

    # We are outside again. The sockets are still inside, and work.
    with inside, client:
        connection, _ = inside.accept()
        with connection:
            client.sendall(b"hello from inside")
            received = connection.recv(100)
        print(f"port {address[1]} is ours twice, outside and inside; inside we received: {received.decode()}")
        assert received == b"hello from inside"
        assert inside.getsockname() == outside.getsockname()
