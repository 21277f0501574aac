"""A broker that speaks as much of Kafka's protocol as a client needs to produce and consume: one partition for each topic,
kept in memory. Requests and answers are binary, framed by length, numbered, and answered in order on one connection; a
fetch waits until there is something."""

import collections
import socketserver
import struct
import sys
import threading

PRODUCE, FETCH, LIST_OFFSETS, METADATA, API_VERSIONS = 0, 1, 2, 3, 18
# The one version of each that is spoken here.
VERSIONS = {PRODUCE: 3, FETCH: 4, LIST_OFFSETS: 1, METADATA: 1, API_VERSIONS: 0}
UNSUPPORTED_VERSION = 35
EARLIEST = -2

changed = threading.Condition()
# Batches of records by topic: offset of the first record, offset behind the last one, octets.
topics = collections.defaultdict(list)


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, length):
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, form):
        return struct.unpack(">" + form, self.take(struct.calcsize(">" + form)))[0]

    def text(self):
        length = self.number("h")
        return self.take(length).decode() if length >= 0 else None

    def octets(self):
        length = self.number("i")
        return self.take(length) if length >= 0 else b""

    def each(self, read):
        return [read() for _ in range(max(self.number("i"), 0))]


def number(form, value):
    return struct.pack(">" + form, value)


def text(value):
    return number("h", len(value)) + value.encode()


def array(items):
    return number("i", len(items)) + b"".join(items)


def end(topic):
    return topics[topic][-1][1] if topics[topic] else 0


def produce(request, _):
    request.text(), request.number("h"), request.number("i")

    def partition(topic):
        index, batch = request.number("i"), request.octets()
        with changed:
            first = end(topic)
            # The broker gives a batch its offset, which the checksum does not cover.
            count = struct.unpack_from(">i", batch, 23)[0] + 1
            topics[topic].append((first, first + count, number("q", first) + batch[8:]))
            changed.notify_all()
        return number("i", index) + number("h", 0) + number("q", first) + number("q", -1)

    def topic():
        name = request.text()
        return text(name) + array(request.each(lambda: partition(name)))

    return array(request.each(topic)) + number("i", 0)


def fetch(request, _):
    request.number("i")
    patience = request.number("i") / 1000
    request.number("i"), request.number("i"), request.number("b")

    def partition(topic):
        index, offset, limit = request.number("i"), request.number("q"), request.number("i")
        with changed:
            changed.wait_for(lambda: end(topic) > offset, patience)
            found = b""
            for _, behind, batch in topics[topic]:
                if behind > offset:
                    if found and len(found) + len(batch) > limit:
                        break
                    found += batch
            high = end(topic)
        head = number("i", index) + number("h", 0) + number("q", high) + number("q", high) + number("i", -1)
        return head + number("i", len(found)) + found

    def topic():
        name = request.text()
        return text(name) + array(request.each(lambda: partition(name)))

    return number("i", 0) + array(request.each(topic))


def list_offsets(request, _):
    request.number("i")

    def partition(topic):
        index, when = request.number("i"), request.number("q")
        with changed:
            offset = 0 if when == EARLIEST else end(topic)
        return number("i", index) + number("h", 0) + number("q", -1) + number("q", offset)

    def topic():
        name = request.text()
        return text(name) + array(request.each(lambda: partition(name)))

    return array(request.each(topic))


def metadata(request, port):
    with changed:
        names = request.each(request.text) or list(topics)
    broker = number("i", 0) + text("kafka") + number("i", port) + number("h", -1)
    nodes = array([number("i", 0)])
    partition = number("h", 0) + number("i", 0) + number("i", 0) + nodes + nodes
    described = [number("h", 0) + text(name) + number("b", 0) + array([partition]) for name in names]
    return array([broker]) + number("i", 0) + array(described)


def api_versions(error):
    versions = [number("h", key) + number("h", version) * 2 for key, version in VERSIONS.items()]
    return number("h", error) + array(versions)


ANSWERS = {PRODUCE: produce, FETCH: fetch, LIST_OFFSETS: list_offsets, METADATA: metadata}


class Connection(socketserver.StreamRequestHandler):
    def handle(self):
        port = self.request.getsockname()[1]
        while length := self.rfile.read(4):
            request = Reader(self.rfile.read(struct.unpack(">i", length)[0]))
            key, version, correlation = request.number("h"), request.number("h"), request.number("i")
            request.text()
            if key == API_VERSIONS:
                # A newer client is told so in the oldest form, and asks again.
                answer = api_versions(0 if version == 0 else UNSUPPORTED_VERSION)
            else:
                assert VERSIONS[key] == version, (key, version)
                answer = ANSWERS[key](request, port)
            answer = number("i", correlation) + answer
            self.wfile.write(number("i", len(answer)) + answer)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


servers = [Server(("0.0.0.0", int(port)), Connection) for port in sys.argv[1:]]
for server in servers[1:]:
    threading.Thread(target=server.serve_forever, daemon=True).start()
servers[0].serve_forever()
