"""How a frontend gets an answer that the supervisor makes.

One pair of SEQPACKET sockets per member: all frontends send on the same end. A request is one packet of JSON with the
write end of a pipe beside it; the answer comes through that pipe: one line of JSON, then the body, until the end of
file. So answers need no ids, may be of any length, and end when either side does.
"""

import json
import os
import select
import socket
import time

REQUEST_BYTES_MAX = 16384
ANSWER_BYTES_MAX = 64 << 20


class Unavailable(Exception):
    """No answer; one line for the client."""


def make():
    """(supervisor's end, frontends' end)."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def ask(fd, request, timeout_seconds=30.0):
    """(status, {header: value}, body) for `request`, a dict that JSON takes. Blocks: for a thread.

    Errors: Unavailable.
    """
    packet = json.dumps(request).encode()
    if len(packet) > REQUEST_BYTES_MAX:
        raise Unavailable("the request is too long")
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        with socket.socket(fileno=os.dup(fd)) as control:
            socket.send_fds(control, [packet], [write_end], socket.MSG_DONTWAIT)
        os.close(write_end)
        write_end = -1
        data = _read_all(read_end, time.monotonic() + timeout_seconds)
    except OSError as err:
        raise Unavailable(f"the supervisor cannot be asked: {err.strerror}") from None
    finally:
        os.close(read_end)
        if write_end >= 0:
            os.close(write_end)
    head, found, body = data.partition(b"\n")
    if not found:
        raise Unavailable("the supervisor gave no answer")
    head = json.loads(head)
    return head["status"], head["headers"], body


def _read_all(fd, deadline):
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    data = bytearray()
    while len(data) <= ANSWER_BYTES_MAX:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise Unavailable("the supervisor gave no answer in time")
        piece = os.read(fd, 1 << 18)
        if not piece:
            return bytes(data)
        data += piece
    raise Unavailable("the answer is too long")


def take(control):
    """The next request: (dict, descriptor for `answer`), or None at the end. Errors: OSError."""
    while True:
        packet, fds, _, _ = socket.recv_fds(control, REQUEST_BYTES_MAX, 1)
        if not packet:
            return None
        if not fds:
            continue
        try:
            return json.loads(packet), fds[0]
        except ValueError:
            os.close(fds[0])


def answer(fd, status, headers, body, timeout_seconds=30.0):
    """Write an answer and close the descriptor; who does not read it in time gets half of it."""
    deadline = time.monotonic() + timeout_seconds
    data = memoryview(json.dumps({"status": status, "headers": headers}).encode() + b"\n" + body)
    os.set_blocking(fd, False)
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    try:
        while data:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return
            try:
                data = data[os.write(fd, data) :]
            except BlockingIOError:
                continue
    except OSError:
        pass  # the frontend has given up, or is gone
    finally:
        os.close(fd)
