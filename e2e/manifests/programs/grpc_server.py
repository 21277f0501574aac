"""A gRPC server without generated code: messages are octets."""

import sys
import threading
from concurrent import futures

import grpc

cancelled = threading.Event()


def echo(request, context):
    for key, value in context.invocation_metadata():
        if key.startswith("x-"):
            context.send_initial_metadata(((key, value),))
            context.set_trailing_metadata(((key, value),))
    return request


def join(requests, context):
    return b"".join(requests)


def split(request, context):
    for octet in request:
        yield bytes([octet])


def talk(requests, context):
    for request in requests:
        yield request.upper()


def fail(request, context):
    context.set_trailing_metadata((("x-detail-bin", b"\0\1\2\xff"), ("x-reason", "asked for")))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not like that: \u00fc, 100 %")


def fail_later(request, context):
    yield b"first"
    context.set_trailing_metadata((("x-reason", "later"),))
    context.abort(grpc.StatusCode.DATA_LOSS, "halfway")


def time_left(request, context):
    """How many seconds the client gives."""
    return b"%d" % (context.time_remaining() or 0)


def forever(request, context):
    gone = threading.Event()
    context.add_callback(gone.set)
    yield b"begun"
    gone.wait()
    cancelled.set()


def was_cancelled(request, context):
    """Waits until a call was seen to be cancelled."""
    cancelled.wait()
    cancelled.clear()
    return b"yes"


UNARY = grpc.unary_unary_rpc_method_handler
METHODS = {
    "Echo": UNARY(echo),
    "Join": grpc.stream_unary_rpc_method_handler(join),
    "Split": grpc.unary_stream_rpc_method_handler(split),
    "Talk": grpc.stream_stream_rpc_method_handler(talk),
    "Fail": UNARY(fail),
    "FailLater": grpc.unary_stream_rpc_method_handler(fail_later),
    "TimeLeft": UNARY(time_left),
    "Forever": grpc.unary_stream_rpc_method_handler(forever),
    "WasCancelled": UNARY(was_cancelled),
}

server = grpc.server(
    futures.ThreadPoolExecutor(max_workers=100),
    options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("programs.Test", METHODS),))
server.add_insecure_port(f"0.0.0.0:{sys.argv[1]}")
server.start()
server.wait_for_termination()
