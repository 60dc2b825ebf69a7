"""bcrypt, in a process of its own that yields to everybody: `python -m etcdfast.apply.auth.passwords JSON`.

One hash of cost 10 takes a core 60 ms and more. The process has niceness 19, so that calls of Authenticate at any rate
take from the member only what nobody else wants, and its queue is bounded (helper.py).

Source: etcd's use of golang.org/x/crypto/bcrypt: `$2a$`, 72 bytes of a password count.
"""

import json
import os
import struct
import sys

from etcdfast import log
from etcdfast.apply.auth.helper import Helper, serve

NICE = 19
COST_MIN, COST_DEFAULT, COST_MAX = 4, 10, 31
PASSWORD_BYTES_MAX = 72
TOO_LONG = "bcrypt: password length exceeds 72 bytes"

HASH, CHECK, PRETEND = range(3)
YES, NO = b"\x01", b"\x00"
_SALT = b"abcdefghijklmnopqrstuu"


def checked_cost(cost):
    """What etcd makes of --bcrypt-cost."""
    if COST_MIN <= cost <= COST_MAX:
        return cost
    log.warn(
        "use default bcrypt cost instead of the invalid given cost",
        min_cost=COST_MIN,
        max_cost=COST_MAX,
        default_cost=COST_DEFAULT,
        given_cost=cost,
    )
    return COST_DEFAULT


def helper(doorbell):
    """The process, not yet started."""
    return Helper("etcdfast.apply.auth.passwords", {}, doorbell, len(os.sched_getaffinity(0)))


# ---- jobs: requests of the helper ----


def hash_job(password, cost):
    """Answer: the hash as text. Precondition: at most PASSWORD_BYTES_MAX bytes."""
    return bytes([cost]) + password


def check_job(stored, password):
    """Answer: YES or NO."""
    return struct.pack("<H", len(stored)) + stored + password[:PASSWORD_BYTES_MAX]


def pretend_job(password, cost):
    """As much work as CHECK, for a user that does not exist. Answer: NO."""
    return bytes([cost]) + password[:PASSWORD_BYTES_MAX]


# ---- the process ----


def hash_password(password, cost):
    import bcrypt

    return bcrypt.hashpw(password[:PASSWORD_BYTES_MAX], bcrypt.gensalt(cost, prefix=b"2a"))


def _handle(kind, request):
    import bcrypt

    if kind == HASH:
        return hash_password(request[1:], request[0])
    if kind == PRETEND:
        bcrypt.hashpw(request[1:], b"$2a$%02d$" % request[0] + _SALT)
        return NO
    (size,) = struct.unpack_from("<H", request)
    stored, password = request[2 : 2 + size], request[2 + size :]
    try:
        return YES if bcrypt.checkpw(password, stored) else NO
    except ValueError:  # what is stored is no hash
        return NO


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]), "etcdfast-bcrypt", _handle, NICE)
    os._exit(0)
