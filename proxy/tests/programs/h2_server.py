"""An HTTP/2 server made of Python's h2: h2_server.py PORT

/reset resets the stream in the middle of its answer, /goaway is the last request that its connection serves, everything
else is answered with its own body and trailers."""

import socket
import socketserver
import sys

import h2.errors
import h2.events
from hyperframe.frame import GoAwayFrame

from h2_common import Connection, pattern


class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.requests = {}
        self.last = None
        connection = Connection(self.request, client=False)
        while (events := connection.events()) is not None:
            for event in events:
                self.event(connection, event)
            connection.pump()
            if self.last is not None and not connection.waiting and not self.requests:
                # Closing with octets unread would be a reset.
                self.request.shutdown(socket.SHUT_WR)
                while self.request.recv(65536):
                    pass
                return

    def event(self, connection, event):
        stream = getattr(event, "stream_id", None)
        match event:
            case h2.events.RequestReceived():
                # What comes after the announced last stream is not looked at; the client knows.
                if self.last is None or stream <= self.last:
                    self.requests[stream] = [dict(event.headers), bytearray(), None]
            case h2.events.DataReceived():
                if stream in self.requests:
                    self.requests[stream][1] += event.data
                connection.taken(event)
            case h2.events.TrailersReceived():
                if stream in self.requests:
                    self.requests[stream][2] = event.headers
            case h2.events.StreamReset():
                self.requests.pop(stream, None)
                connection.waiting.pop(stream, None)
            case h2.events.StreamEnded():
                if stream in self.requests:
                    self.answer(connection, stream, *self.requests.pop(stream))

    def answer(self, connection, stream, head, body, trailers):
        connection.h2.send_headers(stream, [(":status", "200"), ("x-method", head[":method"])])
        match head[":path"]:
            case "/reset":
                connection.h2.send_data(stream, b"part")
                connection.h2.reset_stream(stream, h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
                connection.flush()
            case "/goaway":
                connection.send_body(stream, pattern("goaway", 200_000))
                if self.last is None:
                    # h2 itself says it only when nothing else is to be sent any more.
                    self.last = connection.h2.highest_inbound_stream_id
                    self.request.sendall(GoAwayFrame(0, last_stream_id=self.last, error_code=0).serialize())
            case _:
                connection.send_body(stream, bytes(body), trailers)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


with Server(("0.0.0.0", int(sys.argv[1])), Handler) as server:
    print("ready", flush=True)
    server.serve_forever()
