"""An HTTP/2 connection of Python's h2 over a socket, for h2_client.py and h2_server.py."""

import h2.config
import h2.connection


def pattern(name, octets):
    """A body that can be told apart from every other one."""
    unit = b"".join(b"%s %d\n" % (name.encode(), n) for n in range(64))
    return (unit * (octets // len(unit) + 1))[:octets]


class Connection:
    """Sends bodies as the other side's windows allow, and gives back what it has taken."""

    def __init__(self, sock, client):
        self.sock = sock
        config = h2.config.H2Configuration(client_side=client, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.flush()
        # By stream: what is still to be sent, and the trailers behind it.
        self.waiting = {}

    def flush(self):
        octets = self.h2.data_to_send()
        if octets:
            self.sock.sendall(octets)

    def send_body(self, stream, body, trailers=None):
        self.waiting[stream] = [memoryview(body), trailers]
        self.pump()

    def pump(self):
        """Sends a piece of every body in turn, as far as the windows are open."""
        moved = True
        while moved:
            moved = False
            for stream, (body, trailers) in list(self.waiting.items()):
                n = min(len(body), self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
                if n > 0:
                    self.h2.send_data(stream, bytes(body[:n]))
                    self.waiting[stream][0] = body[n:]
                    moved = True
                if n == len(body):
                    if trailers:
                        self.h2.send_headers(stream, trailers, end_stream=True)
                    else:
                        self.h2.end_stream(stream)
                    del self.waiting[stream]
            self.flush()

    def events(self):
        """What the other side says next, which may be nothing yet; None at its end."""
        octets = self.sock.recv(65536)
        if not octets:
            return None
        events = self.h2.receive_data(octets)
        self.flush()
        return events

    def taken(self, event):
        """A piece of a body was taken."""
        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self.flush()
