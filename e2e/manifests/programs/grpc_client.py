"""Calls grpc_server.py: grpc_client.py TARGET CASE"""

import queue
import sys

import grpc

PATIENCE = 200
target, case = sys.argv[1:]
channel = grpc.insecure_channel(
    target, options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
)


def path(name):
    return f"/programs.Test/{name}"


def unary_calls():
    echo = channel.unary_unary(path("Echo"))
    assert echo(b"hello", timeout=PATIENCE) == b"hello"
    assert echo(b"", timeout=PATIENCE) == b""
    _, call = echo.with_call(b"", timeout=PATIENCE, metadata=(("x-octets-bin", b"\0\xff\n,"),))
    assert dict(call.initial_metadata())["x-octets-bin"] == b"\0\xff\n,"
    assert dict(call.trailing_metadata())["x-octets-bin"] == b"\0\xff\n,"
    large = bytes(range(256)) * (32 * 1024)
    assert echo(large, timeout=PATIENCE) == large
    many = [echo.future(b"%d" % n, timeout=PATIENCE) for n in range(500)]
    assert [call.result() for call in many] == [b"%d" % n for n in range(500)]


def streams():
    join = channel.stream_unary(path("Join"))
    assert join((b"%d," % n for n in range(2000)), timeout=PATIENCE) == b"".join(b"%d," % n for n in range(2000))
    assert join(iter(()), timeout=PATIENCE) == b""
    split = channel.unary_stream(path("Split"))
    octets = bytes(range(256)) * 8
    assert b"".join(split(octets, timeout=PATIENCE)) == octets
    # One word at a time: each answer is there before the next word is said.
    words = queue.Queue()
    talk = channel.stream_stream(path("Talk"))(iter(words.get, None), timeout=PATIENCE)
    for n in range(200):
        words.put(b"word %d" % n)
        assert next(talk) == b"WORD %d" % n
    words.put(None)
    assert list(talk) == []


def failure(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("no error")


def errors_with_trailers():
    error = failure(lambda: channel.unary_unary(path("Fail"))(b"", timeout=PATIENCE))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION, error
    assert error.details() == "not like that: \u00fc, 100 %", error
    trailers = dict(error.trailing_metadata())
    assert trailers["x-detail-bin"] == b"\0\1\2\xff" and trailers["x-reason"] == "asked for", trailers
    answers = channel.unary_stream(path("FailLater"))(b"", timeout=PATIENCE)
    assert next(answers) == b"first"
    error = failure(lambda: next(answers))
    assert error.code() == grpc.StatusCode.DATA_LOSS and error.details() == "halfway", error
    assert dict(error.trailing_metadata())["x-reason"] == "later"
    error = failure(lambda: channel.unary_unary(path("Nothing"))(b"", timeout=PATIENCE))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error


def deadlines_and_cancelling():
    left = channel.unary_unary(path("TimeLeft"))
    seen = channel.unary_unary(path("WasCancelled"))
    assert 0 < int(left(b"", timeout=PATIENCE)) <= PATIENCE
    forever = channel.unary_stream(path("Forever"))
    # A deadline that comes after the call has begun, however slow the machine is.
    for seconds in [1, 2, 4, 8, 16, 32, 64]:
        answers = forever(b"", timeout=seconds)
        try:
            begun = next(answers)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
            continue
        assert begun == b"begun"
        error = failure(lambda: next(answers))
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
        assert seen(b"", timeout=PATIENCE) == b"yes"
        break
    else:
        raise AssertionError("no call began in time")
    answers = forever(b"", timeout=PATIENCE)
    assert next(answers) == b"begun"
    answers.cancel()
    error = failure(lambda: next(answers))
    assert error.code() == grpc.StatusCode.CANCELLED, error
    assert seen(b"", timeout=PATIENCE) == b"yes"


globals()[case]()
channel.close()
