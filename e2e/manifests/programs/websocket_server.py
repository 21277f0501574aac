"""A WebSocket server that says back what it hears."""

import asyncio
import http
import sys

import websockets


async def serve(socket, path):
    if path == "/close":
        await socket.close(4321, "closed by the server")
        return
    if path == "/ping":
        # Says whether the client answers.
        await (await socket.ping(b"from the server"))
        await socket.send("answered")
    try:
        async for message in socket:
            await socket.send(message)
    except websockets.ConnectionClosedError:
        # What the client closed with goes to the next one who asks.
        serve.closed = f"{socket.close_code} {socket.close_reason}"


async def last(path, headers):
    if path == "/closed-with":
        return http.HTTPStatus.OK, [], getattr(serve, "closed", "").encode()


async def main():
    async with websockets.serve(
        serve, "0.0.0.0", int(sys.argv[1]), max_size=None, subprotocols=["echo"], process_request=last
    ):
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
