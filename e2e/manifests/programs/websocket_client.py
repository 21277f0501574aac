"""Talks with websocket_server.py: websocket_client.py ADDRESS CASE"""

import asyncio
import sys
import urllib.request

import websockets
from websockets.asyncio import client

PATIENCE = 200
address, case = sys.argv[1:]


def connect(path="/", **options):
    return client.connect(
        f"ws://{address}{path}", max_size=None, open_timeout=PATIENCE, close_timeout=PATIENCE, ping_interval=None, **options
    )


async def messages():
    for compression in [None, "deflate"]:
        async with connect(compression=compression, subprotocols=["other", "echo"]) as socket:
            assert socket.subprotocol == "echo"
            extensions = socket.response.headers.get("Sec-WebSocket-Extensions")
            assert bool(extensions) == bool(compression), extensions
            large = bytes(range(256)) * (32 * 1024)
            for message in ["text", "", "\u00fc\u20ac\U0001f369", b"octets", b"", bytes(range(256)), large, "x" * len(large)]:
                await socket.send(message)
                assert await socket.recv() == message
            # In fragments.
            await socket.send(["one, ", "two, ", "three"])
            assert await socket.recv() == "one, two, three"


async def both_at_once():
    """Many messages under way in both directions."""
    async with connect() as socket:
        sent = [b"%d:" % n + b"x" * (n % 5000) for n in range(2000)]

        async def send():
            for message in sent:
                await socket.send(message)

        sending = asyncio.create_task(send())
        assert [await socket.recv() for _ in sent] == sent
        await sending
    sockets = [await connect() for _ in range(50)]
    for n, socket in enumerate(sockets):
        await socket.send(str(n))
    for n, socket in enumerate(sockets):
        assert await socket.recv() == str(n)
        await socket.close()


async def pings():
    async with connect("/ping") as socket:
        assert await socket.recv() == "answered"
        await (await socket.ping(b"from the client"))


def closed_with():
    with urllib.request.urlopen(f"http://{address}/closed-with", timeout=PATIENCE) as answer:
        return answer.read()


async def closing():
    socket = await connect()
    await socket.close(4242, "closed by the client")
    assert (socket.close_code, socket.close_reason) == (4242, "closed by the client"), socket.close_code
    # Plain HTTP, on the same port. The server may not be through with closing yet.
    while closed_with() != b"4242 closed by the client":
        await asyncio.sleep(0.1)
    socket = await connect("/close")
    try:
        await socket.recv()
        raise AssertionError("still open")
    except websockets.ConnectionClosed:
        assert (socket.close_code, socket.close_reason) == (4321, "closed by the server"), socket.close_code


asyncio.run(globals()[case]())
