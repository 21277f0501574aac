"""A WebSocket server that says back what it hears."""

import asyncio
import http
import sys

import websockets
from websockets.asyncio.server import serve


async def echo(socket):
    if socket.request.path == "/close":
        await socket.close(4321, "closed by the server")
        return
    if socket.request.path == "/ping":
        # Says whether the client answers.
        await (await socket.ping(b"from the server"))
        await socket.send("answered")
    try:
        async for message in socket:
            await socket.send(message)
    except websockets.ConnectionClosedError:
        # What the client closed with goes to the next one who asks.
        echo.closed = f"{socket.close_code} {socket.close_reason}"


def last(socket, request):
    if request.path == "/closed-with":
        return socket.respond(http.HTTPStatus.OK, getattr(echo, "closed", ""))


async def main():
    async with serve(
        echo, "0.0.0.0", int(sys.argv[1]), max_size=None, subprotocols=["echo"], process_request=last,
        ping_interval=None, select_subprotocol=lambda _, offered: "echo" if "echo" in offered else None,
    ):
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
