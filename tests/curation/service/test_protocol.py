"""What does not end before a token is shown is ended; what is long but ends is answered."""

import contextlib
import socket

import pytest

from echostill.curation.service.protocol import UNFINISHED_BYTES

pytestmark = pytest.mark.slow  # a service of its own

HEAD = b"GET /v1/pool HTTP/1.1\r\nHost: 127.0.0.1\r\n"
POST = b"POST /v1/sql HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "a header": (HEAD + b"X: ", b"a" * 1024),
    "headers": (HEAD, b"X: " + b"a" * 1000 + b"\r\n"),
    "a target": (b"GET /", b"a" * 1024),
    "a name of a header": (HEAD, b"a" * 1024),
    "trailers": (POST + b"1\r\nx\r\n0\r\n", b"X: " + b"a" * 1000 + b"\r\n"),
    "an extension of a chunk": (POST + b"1;", b"a" * 1024),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_framing_is_ended(live, name):
    start, more = ENDLESS[name]
    sent = 0
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as sender:
        with contextlib.suppress(OSError):
            sender.sendall(start)
            while sent < 64 * UNFINISHED_BYTES:  # beyond what the kernel's buffers take
                sender.sendall(more)
                sent += len(more)
        answer = b""
        with contextlib.suppress(OSError):
            while piece := sender.recv(65536):
                answer += piece
    assert sent < 64 * UNFINISHED_BYTES
    assert b" 200 " not in answer


def test_a_long_head_and_a_longer_body_are_answered(live, make):
    """Not the sum of a connection's bytes is limited, only what has not ended."""
    body = b'{"sql": "select 1' + b" " * 90_000 + b'"}'
    text = (
        b"POST /v1/sql HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\n"
        b"X: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    ) % (make["token"].encode(), b"a" * 30_000, len(body))
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as sender:
        for _ in range(5):
            sender.sendall(text + body)
            answer = b""
            while b'"rows": [[1]]}' not in answer:
                piece = sender.recv(65536)
                assert piece, answer[:300]
                answer += piece
            assert answer.startswith(b"HTTP/1.1 200 ")
