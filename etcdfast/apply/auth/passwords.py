"""bcrypt, in processes of its own: `python -m etcdfast.apply.auth.passwords JSON`.

One hash of cost 10 takes a core 60 ms and more. There are two lanes. The patient one computes with what nobody else
wants (SCHED_IDLE), on half of the cores, so that calls of Authenticate at any rate leave the member alone. On a machine
that is busy all the time it would never come to an end, so a job per second (four at first) takes the prompt lane.

Each lane's queue is bounded (helper.py).

Source: etcd's use of golang.org/x/crypto/bcrypt: `$2a$`, 72 bytes of a password count.
"""

import json
import os
import struct
import sys
import time

from etcdfast import log
from etcdfast.apply.auth.helper import Helper, serve

PATIENT_NICE, PROMPT_NICE = 19, 5
PROMPT_BURST, PROMPT_PER_SECOND = 4, 1
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


class Lanes:
    """Both lanes, with the face of a Helper. `clock`: seconds."""

    def __init__(self, prompt, patient, clock=time.monotonic):
        self.prompt, self.patient = prompt, patient
        self._clock = clock
        self._credit = PROMPT_BURST  # jobs that the prompt lane may take now
        self._credit_at = clock()

    @property
    def active(self):
        return self.prompt.active or self.patient.active

    @property
    def waiting(self):
        return self.prompt.waiting + self.patient.waiting

    @property
    def on_work(self):
        return self.patient.on_work

    @on_work.setter
    def on_work(self, work):
        self.prompt.on_work = self.patient.on_work = work

    def submit(self, owner, kind, request, done):
        lane = self.prompt if self._may_be_prompt() else self.patient
        return lane.submit(owner, kind, request, done)

    def _may_be_prompt(self):
        now = self._clock()
        self._credit = min(PROMPT_BURST, self._credit + (now - self._credit_at) * PROMPT_PER_SECOND)
        self._credit_at = now
        if self._credit < 1 or self.prompt.waiting:
            return False
        self._credit -= 1
        return True

    def promote(self):
        """Who has waited longest in the patient lane goes on in the prompt one, as far as that may. To be called
        about once a second."""
        while self.patient.waiting and self._may_be_prompt():
            self.prompt.submit(*self.patient.take_oldest())

    def withdraw(self, owner):
        self.prompt.withdraw(owner)
        self.patient.withdraw(owner)

    def step(self):
        for lane in (self.prompt, self.patient):
            if lane.active:
                lane.step()

    def start(self):
        self.prompt.start()
        self.patient.start()

    def wait_ready(self):
        self.prompt.wait_ready()
        self.patient.wait_ready()

    def close(self):
        self.prompt.close()
        self.patient.close()


def helper(doorbell):
    """Both lanes, their processes not yet started."""
    cores = len(os.sched_getaffinity(0))
    return Lanes(
        Helper("etcdfast.apply.auth.passwords", {"patient": False}, doorbell),
        Helper("etcdfast.apply.auth.passwords", {"patient": True}, doorbell, max(cores // 2, 1)),
    )


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
    asked = json.loads(sys.argv[1])
    patient = asked.get("patient", False)
    serve(asked, "etcdfast-bcrypt", _handle, PATIENT_NICE if patient else PROMPT_NICE, idle=patient)
    os._exit(0)
