"""Passwords and JWT tokens in their processes: what they answer, that they are bounded, that they come back."""

import os
import signal
import time

import bcrypt
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from etcdfast._ext.tokenpage import TokenPage, format_tokens
from etcdfast.api import errors
from etcdfast.apply.auth import helper as helpers
from etcdfast.apply.auth import passwords, signing
from etcdfast.apply.auth.helper import HelperError
from etcdfast.apply.auth.tokens import JwtTokens, SimpleTokens
from etcdfast.config import authtoken


@pytest.fixture
def doorbell():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.fixture
def page():
    fd = os.memfd_create("tokens")
    format_tokens(fd)
    yield TokenPage(fd)
    os.close(fd)


def finish(helper, doorbell, results, count):
    """Steps, each after the doorbell has rung, until so many jobs are done."""
    end = time.monotonic() + 30
    while len(results) < count:
        assert time.monotonic() < end
        try:
            os.eventfd_read(doorbell)
        except BlockingIOError:
            time.sleep(0.002)
        helper.step()


# ---- passwords ----


def test_passwords_are_hashed_and_compared_beside_apply(doorbell):
    helper = passwords.helper(doorbell)
    results = {}

    def done(owner, status, answer):
        assert not status
        results[owner] = answer

    try:
        assert helper.submit("hash", passwords.HASH, passwords.hash_job(b"secret", 4), done)
        stored = bcrypt.hashpw(b"secret", bcrypt.gensalt(4, prefix=b"2a"))
        long = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4, prefix=b"2a"))
        jobs = {
            "right": passwords.check_job(stored, b"secret"),
            "wrong": passwords.check_job(stored, b"Secret"),
            "no hash": passwords.check_job(b"", b"secret"),
            "72 bytes count": passwords.check_job(long, b"x" * 100),
        }
        for name, job in jobs.items():
            assert helper.submit(name, passwords.CHECK, job, done)
        assert helper.submit("nobody", passwords.PRETEND, passwords.pretend_job(b"secret", 4), done)
        finish(helper, doorbell, results, 6)
        assert results["hash"].startswith(b"$2a$04$") and bcrypt.checkpw(b"secret", results.pop("hash"))
        assert results == {
            "right": passwords.YES,
            "wrong": passwords.NO,
            "no hash": passwords.NO,
            "72 bytes count": passwords.YES,
            "nobody": passwords.NO,
        }
        assert not helper.active
        patient, prompt = helper.patient._process.pid, helper.prompt._process.pid
        assert os.sched_getscheduler(patient) == os.SCHED_IDLE
        assert os.sched_getscheduler(prompt) == os.SCHED_OTHER
        assert os.getpriority(os.PRIO_PROCESS, prompt) == passwords.PROMPT_NICE
    finally:
        helper.close()


def test_the_queue_is_bounded_and_jobs_can_be_taken_back(doorbell):
    helper = helpers.Helper("etcdfast.apply.auth.passwords", {}, doorbell, workers=1, queue_max=3)
    results = {}

    def done(owner, status, answer):
        results[owner] = answer

    try:
        for i in range(4):  # one is under way, three wait
            assert helper.submit(i, passwords.PRETEND, passwords.pretend_job(b"p", 4), done)
        assert not helper.submit(4, passwords.PRETEND, passwords.pretend_job(b"p", 4), done)
        helper.withdraw(2)
        assert helper.waiting == 2
        assert helper.submit(5, passwords.PRETEND, passwords.pretend_job(b"p", 4), done)
        finish(helper, doorbell, results, 4)
        assert sorted(results) == [0, 1, 3, 5]
    finally:
        helper.close()


def test_a_child_that_is_killed_costs_its_jobs_and_comes_back(doorbell):
    helper = passwords.helper(doorbell)
    results = {}

    def done(owner, status, answer):
        results[owner] = status

    try:
        helper.start()
        os.kill(helper.prompt._process.pid, signal.SIGKILL)
        assert helper.submit("lost", passwords.PRETEND, passwords.pretend_job(b"p", 4), done)
        finish(helper, doorbell, results, 1)
        assert results == {"lost": errors.ID["INTERNAL"]}
        assert helper.submit("again", passwords.PRETEND, passwords.pretend_job(b"p", 4), done)
        finish(helper, doorbell, results, 2)
        assert results["again"] == 0
    finally:
        helper.close()


class Lane:
    """A helper that only notes its jobs; one is under way, the others wait."""

    def __init__(self):
        self.jobs = []

    @property
    def waiting(self):
        return max(len(self.jobs) - 1, 0)

    def submit(self, *job):
        self.jobs.append(job)
        return True

    def take_oldest(self):
        return self.jobs.pop(1)


def test_a_job_a_second_is_prompt_and_the_oldest_of_the_others_come_next():
    now = [0.0]
    lanes = passwords.Lanes(Lane(), Lane(), lambda: now[0])
    for number in range(10):
        assert lanes.submit(number, passwords.HASH, b"", None)
        lanes.prompt.jobs, gone = [], lanes.prompt.jobs
        assert [job[0] for job in gone] == ([number] if number < passwords.PROMPT_BURST else [])
    lanes.promote()
    assert lanes.prompt.jobs == []
    now[0] = 2.5
    lanes.promote()
    assert [job[0] for job in lanes.prompt.jobs] == [5, 6]  # 4 is under way where it is
    lanes.promote()
    assert len(lanes.prompt.jobs) == 2 and [job[0] for job in lanes.patient.jobs] == [4, 7, 8, 9]


@pytest.mark.parametrize("given,taken", [(3, 10), (4, 4), (31, 31), (32, 10), (0, 10)])
def test_the_cost_has_etcds_limits(given, taken):
    assert passwords.checked_cost(given) == taken


# ---- simple tokens ----


def test_a_simple_token_lives_by_use_and_waits_for_its_entry(page):
    now = [10**9]
    tokens = SimpleTokens(page, 5 * 10**9, lambda: now[0])
    tokens.enable()
    prefix = tokens.new_prefix()
    assert len(prefix) == 16 and prefix.isalpha()
    token = tokens.assign(b"ann", prefix, 7, 3)
    assert token == prefix + b".7"
    assert tokens.check(token, 7) is True
    assert tokens.check(prefix + b".8", 7) is None  # its entry may yet come
    assert tokens.check(prefix + b".8", 8) is False
    for odd in (b"", prefix, prefix + b".", prefix + b".x", token + b".7", prefix + b".-1", prefix + b"." + b"9" * 21):
        assert tokens.check(odd, 7) is False
    assert page.get(token, now[0]) == (b"ann", 0)
    now[0] += 6 * 10**9
    assert tokens.check(token, 7) is False
    tokens.sweep()
    assert len(page) == 0
    token = tokens.assign(b"ann", prefix, 9, 3)
    tokens.drop_user(b"ann")
    assert tokens.check(token, 9) is False
    tokens.assign(b"ann", prefix, 10, 3)
    tokens.disable()
    assert len(page) == 0
    tokens.assign(b"ann", prefix, 11, 3)
    assert len(page) == 0


def test_a_name_too_long_has_no_token_here(page):
    tokens = SimpleTokens(page, 10**9, lambda: 1)
    tokens.enable()
    assert tokens.assign(b"x" * 257, b"p", 1, 1) == b"p.1"
    assert len(page) == 0


# ---- JWT ----

_PRIVATE = {}


def private_key(method):
    kind = "HS" if method[:2] == "HS" else "RSA" if method[:2] in ("RS", "PS") else method
    if kind not in _PRIVATE:
        curves = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}
        if kind == "HS":
            _PRIVATE[kind] = b"a secret of no special length"
        elif kind == "RSA":
            _PRIVATE[kind] = rsa.generate_private_key(65537, 2048)
        elif kind == "EdDSA":
            _PRIVATE[kind] = ed25519.Ed25519PrivateKey.generate()
        else:
            _PRIVATE[kind] = ec.generate_private_key(curves[kind]())
    return _PRIVATE[kind]


def key_files(method, folder):
    """(--auth-token option text of both keys, {"priv-key", "pub-key"})"""
    key = private_key(method)
    private, public = folder / f"{method}.key", folder / f"{method}.pub"
    if isinstance(key, bytes):
        private.write_bytes(key)
        return {"priv-key": str(private), "pub-key": ""}
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return {"priv-key": str(private), "pub-key": str(public)}


def signer(method, folder, **changed):
    return signing.Signer({"sign-method": method, "ttl": 60, **key_files(method, folder), **changed})


METHODS = sorted(authtoken.SIGN_METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_signs_and_verifies(method, tmp_path):
    both = signer(method, tmp_path)
    token = both.sign("änn".encode(), 7)
    left_ns, revision, user = signing.read_verified(both.verify(token))
    assert (revision, user.decode()) == (7, "änn") and 58e9 < left_ns <= 60e9
    assert jwt.get_unverified_header(token.decode()) == {"alg": method, "typ": "JWT"}
    if method[:2] != "HS":
        only = signer(method, tmp_path, **{"priv-key": ""})
        assert signing.read_verified(only.verify(token))[1] == 7
        with pytest.raises(HelperError, match="verify-only"):
            only.sign(b"ann", 7)
    other = signer("HS256" if method != "HS256" else "HS512", tmp_path)
    for forged in (token[:-4] + b"AAAA", other.sign(b"ann", 7), b"", b"a.b.c", b"x" * 100):
        with pytest.raises(HelperError):
            both.verify(forged)


@pytest.mark.filterwarnings("ignore:The HMAC key")
def test_claims_are_looked_at(tmp_path):
    one = signer("HS256", tmp_path)
    secret = private_key("HS256")

    def made(claims):
        return jwt.encode(claims, secret, "HS256").encode()

    good = {"username": "ann", "revision": 3}
    assert signing.read_verified(one.verify(made(good))) == (0, 3, b"ann")
    # What others may put into their tokens is none of ours.
    assert one.verify(made({**good, "aud": "x", "iss": "y", "iat": time.time() + 1000, "sub": "z"}))
    for bad in (
        {**good, "exp": time.time() - 1},
        {**good, "exp": "soon"},
        {**good, "nbf": time.time() + 60},
        {"revision": 3},
        {"username": "ann"},
        {"username": 1, "revision": 3},
        {"username": "ann", "revision": "3"},
        {"username": "ann", "revision": True},
        {"username": "ann", "revision": -1},
    ):
        with pytest.raises(HelperError):
            one.verify(made(bad))
    with pytest.raises(HelperError):
        one.verify(jwt.encode(good, None, "none").encode())


def test_keys_that_do_not_fit_are_told(tmp_path):
    rsa_keys, es_keys = key_files("RS256", tmp_path), key_files("ES256", tmp_path)
    (tmp_path / "not").write_text("no key")
    for method, keys, told in (
        ("RS256", {"priv-key": "", "pub-key": ""}, "auth: missing key data"),
        ("HS256", {"priv-key": "", "pub-key": rsa_keys["pub-key"]}, "auth: missing key data"),
        ("RS256", {"priv-key": es_keys["priv-key"], "pub-key": ""}, "not of the kind"),
        ("ES256", {"priv-key": "", "pub-key": rsa_keys["pub-key"]}, "not of the kind"),
        ("RS256", {"priv-key": str(tmp_path / "not"), "pub-key": ""}, "invalid private key"),
        ("RS256", {"priv-key": str(tmp_path / "none"), "pub-key": ""}, "cannot read"),
    ):
        with pytest.raises(HelperError, match=told):
            signing.Signer({"sign-method": method, "ttl": 60, **keys})
    strange = rsa.generate_private_key(65537, 2048).public_key()
    (tmp_path / "strange").write_bytes(strange.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(HelperError, match="don't match"):
        signing.Signer({"sign-method": "RS256", "ttl": 60, **rsa_keys, "pub-key": str(tmp_path / "strange")})


def test_jwt_tokens_are_verified_once_and_anew_with_other_keys(page, doorbell, tmp_path):
    options = {"sign-method": "ES256", "ttl": 60, **key_files("ES256", tmp_path)}
    tokens = JwtTokens(page, signing.helper(options, doorbell), time.monotonic_ns)
    try:
        token = signing.Signer(options).sign(b"ann", 5)
        assert tokens.check(token, 0) is None and tokens.check(b"a.b.c", 0) is None
        verdicts = []
        while len(verdicts) < 2:
            tokens.helper.step()
            verdicts = [v for v in (tokens.check(token, 0), tokens.check(b"a.b.c", 0)) if v is not None] or verdicts
            time.sleep(0.002)
        assert tokens.check(token, 0) is True and page.get(token, time.monotonic_ns()) == (b"ann", 5)
        assert tokens.check(b"x" * 2049, 0) is False
        _PRIVATE.pop("ES256")
        other = {**options, **key_files("ES256", tmp_path)}
        tokens.reload(signing.helper(other, doorbell))
        assert page.get(token, time.monotonic_ns()) is None and tokens.check(token, 0) is None
        (tmp_path / "ES256.key").write_text("broken")
        with pytest.raises(HelperError, match="invalid private key"):
            signing.helper(other, doorbell)
    finally:
        tokens.helper.close()


# ---- the option ----


def test_the_option_is_read_as_etcd_reads_it():
    assert authtoken.parse("simple") == ("simple", {}, [])
    assert authtoken.parse("") == ("", {}, [])
    kind, options, unknown = authtoken.parse("jwt,sign-method=RS256,priv-key=a,ttl=90s,colour=red")
    assert kind == "jwt" and unknown == ["colour"]
    assert options == {"sign-method": "RS256", "priv-key": "a", "pub-key": "", "ttl": 90}
    assert authtoken.parse("jwt,sign-method=EdDSA")[1]["ttl"] == 300
    for wrong in (
        "other", "jwt", "jwt,sign-method=", "jwt,sign-method=none", "jwt,sign-method=rs256",
        "jwt,sign-method=RS256,ttl=x", "jwt,a", "jwt,a=b=c", "jwt,sign-method=RS256,sign-method=RS256", "simple,x",
    ):  # fmt: skip
        with pytest.raises(ValueError, match="auth: invalid auth options"):
            authtoken.parse(wrong)
