"""An asyncio server and client through sockets that were made inside a net namespace, in one loop that is outside.

Make the sockets inside with ``call_in``, which works for an ordinary user too, and use them here. Never hold ``enter``
across an ``await``: the other tasks of the thread would run inside meanwhile.
"""

from __future__ import annotations

import asyncio
import socket

from _target import new_target, require_program

import nsjoin

require_program("ip", "iproute2")
ADDRESS = ("127.0.0.1", 8080)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"you said: " + await reader.readline())
    await writer.drain()
    writer.close()


async def talk(target: int) -> str:
    listening = await nsjoin.aio.call_in(target, socket.create_server, ADDRESS)
    async with await asyncio.start_server(answer, sock=listening):
        connected = await nsjoin.aio.call_in(target, socket.create_connection, ADDRESS)
        reader, writer = await asyncio.open_connection(sock=connected)
        writer.write(b"hello\n")
        reply = await reader.readline()
        writer.close()
        await writer.wait_closed()
    return reply.decode().strip()


with new_target("--net", setup="ip link set lo up") as target:
    reply = asyncio.run(talk(target))
    print(f"a server and a client in the net namespace of process {target}, both run from here: {reply}")

if reply != "you said: hello":
    raise SystemExit("that is not what was said")
