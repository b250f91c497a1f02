"""A bundle server that means harm, in a process of its own so that only its bytes cost the node anything.

    python hostile.py DIRECTORY

Prints its port. Serves DIRECTORY honestly until a file `mode` there names a way of harming.
"""

import asyncio
import gzip
import sys
from functools import partial
from pathlib import Path

BOMB_BYTES = 50_000_000


async def slow(writer, _body):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n")
    for _ in range(4000):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.05)


async def silent(_writer, _body):
    await asyncio.sleep(60)


async def drip_head(writer, _body):
    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 4000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


async def truncated(writer, body):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(body) + 100) + body[:-1])


async def endless(writer, _body):
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + bytes(65536) + b"\r\n")
        await writer.drain()


async def endless_headers(writer, _body):
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-Padding: " + b"p" * 4096 + b"\r\n")
        await writer.drain()


async def bomb(writer, _body):
    data = gzip.compress(bytes(BOMB_BYTES), 1)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(data)
    writer.write(head + data)
    await writer.drain()


async def redirect(writer, _body):
    writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n")


async def redirect_loop(writer, _body):
    writer.write(b"HTTP/1.1 302 Found\r\nLocation: /test/head\r\nContent-Length: 0\r\n\r\n")


async def not_modified(writer, _body):
    writer.write(b'HTTP/1.1 304 Not Modified\r\nETag: "zzz"\r\n\r\n')


async def portal(writer, _body):
    page = b"<html>please log in</html>"
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(page) + page)


FLIPS = [0]


async def flipping(writer, body):
    FLIPS[0] += 1
    changed = bytearray(body)
    changed[FLIPS[0] % len(body)] ^= 1
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(changed) + changed)


async def storm(writer, _body):
    writer.write(b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n")


async def nested(writer, _body):
    """Msgpack that asks for a thousand arrays of ten thousand."""
    data = b"\xdd\x00\x00\x27\x10" * 1000 + bytes(10_000)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)


MODES = {
    function.__name__: function
    for function in (
        slow, silent, drip_head, truncated, endless, endless_headers, bomb, redirect, redirect_loop,
        not_modified, portal, flipping, storm, nested,
    )
}  # fmt: skip


async def serve(directory, reader, writer):
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
        path = raw.split(b" ")[1].decode().removeprefix("/")
        mode = directory / "mode"
        harm = mode.read_text() if mode.exists() else ""
        file = directory / path
        body = file.read_bytes() if file.is_file() else b""
        if harm and body:
            await MODES[harm](writer, body)
        elif body:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        else:
            writer.write(b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(partial(serve, Path(sys.argv[1])), "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
