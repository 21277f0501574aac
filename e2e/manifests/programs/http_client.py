"""HTTP/1 by hand, with nginx: http_client.py HOST PORT CASE"""

import socket
import sys

PATIENCE = 200
host, port, case = sys.argv[1:]


def connect():
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def answer(file):
    """Status line, fields (the trailers are among them) and body of one response."""
    line = file.readline().decode()
    fields = read_fields(file)
    if fields.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(file.readline(), 16):
            body += file.read(size)
            assert file.readline() == b"\r\n"
        fields.update(read_fields(file))
    elif "content-length" in fields:
        body = file.read(int(fields["content-length"]))
    else:
        body = file.read()
    return line.rstrip(), fields, body.decode()


def read_fields(file):
    fields = {}
    while (line := file.readline()) not in (b"\r\n", b""):
        name, value = line.decode().split(":", 1)
        fields[name.lower()] = value.strip()
    return fields


def request(path, version="HTTP/1.1", fields=()):
    return "\r\n".join([f"GET {path} {version}", *fields, "", ""]).encode()


def pipelined():
    with connect() as sock, sock.makefile("rb") as file:
        paths = ["/protocol", "/alphabet", "/nothing", "/chunked/alphabet", "/protocol"]
        sock.sendall(b"".join(request(path, fields=["Host: nginx"]) for path in paths))
        answers = [answer(file) for _ in paths]
    statuses = [line for line, _, _ in answers]
    assert statuses[2] == "HTTP/1.1 404 Not Found", statuses
    assert set(statuses[:2] + statuses[4:]) == {"HTTP/1.1 200 OK"}, statuses
    assert [answers[n][2] for n in (0, 1, 4)] == ["HTTP/1.1 nginx", "abcdefghijklmnopqrstuvwxyz", "HTTP/1.1 nginx"], answers


def half_closed():
    """A client that has said all it has to say still gets its answer."""
    for version, fields in [("HTTP/1.1", ["Host: nginx"]), ("HTTP/1.1", ["Host: nginx", "Connection: close"]), ("HTTP/1.0", [])]:
        with connect() as sock, sock.makefile("rb") as file:
            sock.sendall(request("/alphabet", version, fields))
            sock.shutdown(socket.SHUT_WR)
            line, _, body = answer(file)
            assert line.endswith(" 200 OK") and body == "abcdefghijklmnopqrstuvwxyz", (line, body)
            assert file.read() == b""


def http_1_0():
    with connect() as sock, sock.makefile("rb") as file:
        sock.sendall(request("/alphabet", "HTTP/1.0"))
        line, fields, body = answer(file)
        assert line.endswith(" 200 OK") and body == "abcdefghijklmnopqrstuvwxyz", (line, body)
        assert file.read() == b"", "it was to close"
        assert fields.get("connection", "close") == "close", fields
    with connect() as sock, sock.makefile("rb") as file:
        for _ in range(3):
            sock.sendall(request("/alphabet", "HTTP/1.0", ["Host: nginx", "Connection: keep-alive"]))
            _, fields, body = answer(file)
            assert body == "abcdefghijklmnopqrstuvwxyz" and fields["connection"] == "keep-alive", fields
    # A client of this version knows no chunks.
    with connect() as sock, sock.makefile("rb") as file:
        sock.sendall(request("/chunked/text", "HTTP/1.0", ["Host: nginx"]))
        _, fields, body = answer(file)
        assert "transfer-encoding" not in fields and body == "text in chunks\n", (fields, body)


def trailers():
    with connect() as sock, sock.makefile("rb") as file:
        for _ in range(2):
            sock.sendall(request("/chunked/text", fields=["Host: nginx", "TE: trailers"]))
            _, fields, body = answer(file)
            assert fields["transfer-encoding"] == "chunked" and body == "text in chunks\n", (fields, body)
            assert fields["x-trailer"] == "last", fields


def octet_by_octet():
    with connect() as sock, sock.makefile("rb") as file:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in request("/protocol", fields=["Host: nginx"]):
            sock.sendall(bytes([octet]))
        assert answer(file)[2] == "HTTP/1.1 nginx"


def odd_targets():
    with connect() as sock, sock.makefile("rb") as file:
        for target, field, expected in [
            ("http://nginx/protocol", "Host: nginx", "HTTP/1.1 nginx"),
            ("/protocol", "Host: elsewhere.example:8080", "HTTP/1.1 elsewhere.example"),
            ("/protocol", "Host: NGINX", "HTTP/1.1 nginx"),
            ("/%70rotocol?a=b&c", "Host: nginx", "HTTP/1.1 nginx"),
        ]:
            sock.sendall(request(target, fields=[field]))
            _, _, body = answer(file)
            assert body == expected, (target, body)


globals()[case]()
