"""Calls h2_server.py: h2_client.py HOST PORT CASE, always on one connection."""

import socket
import sys

import h2.errors
import h2.events

from h2_common import Connection, pattern

host, port, case = sys.argv[1:]
sock = socket.create_connection((host, int(port)), timeout=60)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
connection = Connection(sock, client=True)


class Answer:
    def __init__(self):
        self.status, self.body, self.trailers, self.reset, self.ended = None, bytearray(), None, None, False


answers = {}


def ask(method, path, end=True):
    stream = connection.h2.get_next_available_stream_id()
    head = [(":method", method), (":scheme", "http"), (":authority", "web.test"), (":path", path)]
    connection.h2.send_headers(stream, head, end_stream=end)
    connection.flush()
    answers[stream] = Answer()
    return stream


def wait():
    """Until every stream has ended."""
    while not all(answer.ended for answer in answers.values()):
        events = connection.events()
        assert events is not None, f"the connection ended: {answers}"
        for event in events:
            answer = answers.get(getattr(event, "stream_id", None))
            match event:
                case h2.events.ResponseReceived():
                    answer.status = dict(event.headers)[":status"]
                case h2.events.DataReceived():
                    answer.body += event.data
                    connection.taken(event)
                case h2.events.TrailersReceived():
                    answer.trailers = event.headers
                case h2.events.StreamReset():
                    answer.reset, answer.ended = event.error_code, True
                    connection.waiting.pop(event.stream_id, None)
                case h2.events.StreamEnded():
                    answer.ended = True
                case h2.events.ConnectionTerminated():
                    raise AssertionError(f"the proxy goes away: {event}")
        connection.pump()


def bodies():
    """Together and one by one larger than every window on the way, sent at once, each with trailers."""
    sent = {}
    for n in range(8):
        stream = ask("POST", f"/{n}", end=False)
        sent[stream] = pattern(f"body {n}", 300_000 + n * 100_000)
        connection.send_body(stream, sent[stream], [("x-sum", str(len(sent[stream])))])
    wait()
    for stream, body in sent.items():
        answer = answers[stream]
        assert (answer.status, answer.reset) == ("200", None), vars(answer)
        assert answer.body == body, f"stream {stream}: {len(answer.body)} of {len(body)} octets"
        assert answer.trailers == [("x-sum", str(len(body)))], answer.trailers


def reset():
    """A stream that the server resets is reset here, with its code, and the others go on."""
    streams = [ask("GET", "/reset" if n % 3 == 0 else f"/{n}") for n in range(30)]
    wait()
    for n, stream in enumerate(streams):
        answer = answers[stream]
        expected = h2.errors.ErrorCodes.ENHANCE_YOUR_CALM if n % 3 == 0 else None
        assert answer.reset == expected, (n, vars(answer))
        assert answer.status == "200" or n % 3 == 0, (n, vars(answer))


def goaway():
    """A server's connections that end, with requests on their way, cost no request."""
    streams = [ask("GET", "/goaway" if n % 10 == 5 else f"/{n}") for n in range(60)]
    wait()
    for n, stream in enumerate(streams):
        answer = answers[stream]
        body = pattern("goaway", 200_000) if n % 10 == 5 else b""
        assert (answer.status, answer.reset) == ("200", None), (n, vars(answer))
        assert answer.body == body, (n, len(answer.body))


{"bodies": bodies, "reset": reset, "goaway": goaway}[case]()
print("as expected")
