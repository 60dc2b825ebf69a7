"""Auth calls that cannot go into the log as they come: a password is hashed or compared first, beside apply.

Authenticate, UserAdd and UserChangePassword are services (etcdfast/apply/services): generators that wait for a
ReadIndex, for bcrypt, for their entry. All other calls of the service are proposed by the frontend and answered from
the entry (store.py). No password enters the log, a log line or an error text.

Source: etcd's server/etcdserver/v3_server (Authenticate, UserAdd, UserChangePassword).
"""

import base64
import time

from etcdfast import log
from etcdfast.api import errors, rpcs
from etcdfast.apply.auth import messages, passwords, signing
from etcdfast.apply.auth.helper import HelperError
from etcdfast.apply.auth.store import AuthStore, Denied
from etcdfast.apply.auth.tokens import NAME_BYTES_MAX, SWEEP_NS, JwtTokens, NoTokens, SimpleTokens
from etcdfast.apply.services import Job, Pause, Proposal, ReadIndex, text_of
from etcdfast.config import authtoken

AUTHENTICATE, USER_ADD, USER_CHANGE_PASSWORD = (
    rpcs.BY_PATH[f"/etcdserverpb.Auth/{name}"].id for name in ("Authenticate", "UserAdd", "UserChangePassword")
)
NAME_TOO_LONG = f"etcdserver: names of users that authenticate are limited to {NAME_BYTES_MAX} bytes"


class Auth:
    """What apply has of auth. `engine`: etcdfast/apply/engine; `table`: AuthTable; `page`: TokenPage; `doorbell`: of
    apply, an eventfd; `config`: auth_token, auth_token_ttl, bcrypt_cost.

    store: AuthStore; handlers: for Services; active: step() has something to do, sooner or later.
    Errors: HelperError when there cannot be tokens: JWT keys that cannot be used, options that are none.
    """

    def __init__(self, engine, table, page, doorbell, config, clock=time.monotonic_ns):
        self._engine = engine
        self._doorbell = doorbell
        self.cost = passwords.checked_cost(config.bcrypt_cost)
        self.active = False  # asked in every turn, so it is no property
        self.passwords = passwords.helper(doorbell)
        self.tokens = _tokens(config, page, doorbell, clock)
        self.passwords.on_work = self._work
        if self.tokens.signs:
            self.tokens.helper.on_work = self._work
        self.store = AuthStore(engine.store, table, self.tokens, self._hash_now)
        if self.store.enabled:
            self.passwords.start()  # ready before the first client comes
        self.handlers = {
            AUTHENTICATE: self._authenticate,
            USER_ADD: self._user_add,
            USER_CHANGE_PASSWORD: self._change_password,
        }

    def _work(self):
        self.active = True

    def step(self):
        """Take what the helper processes have done."""
        helpers = (self.passwords, self.tokens.helper) if self.tokens.signs else (self.passwords,)
        for helper in helpers:
            if helper.active:
                helper.step()
        self.active = any(helper.active for helper in helpers)

    def check_token(self, token):
        """Whether a token that a frontend does not know is valid (then it is in the page now); None: ask again."""
        return self.tokens.check(token, self._engine.applied_index)

    def _hash_now(self, password):
        return passwords.hash_password(password, self.cost)

    def keep(self):
        """A task for Services.start: what time does to tokens, and to those who wait for bcrypt."""
        while True:
            yield Pause(SWEEP_NS)
            self.tokens.sweep()
            self.passwords.promote()

    def reload(self, config):
        """Read the keys of JWT again. The old ones stay when the new ones cannot be used."""
        if not self.tokens.signs:
            return
        try:
            _, options, _ = authtoken.parse(config.auth_token)
            helper = signing.helper(options, self._doorbell)
            helper.on_work = self._work
            self.tokens.reload(helper)
            log.info("read the keys of JWT tokens again")
        except (HelperError, ValueError) as err:
            log.error("cannot use the new keys of JWT tokens; the old ones stay", error=str(err))

    def close(self):
        self.passwords.close()
        if self.tokens.signs:
            self.tokens.helper.close()

    # ---- calls ----

    def _authenticate(self, services, call, payload):
        call.user = b""  # whoever asks for a token has no name yet
        name, password = messages.texts(payload, 1, 2)
        del payload
        status, text = yield ReadIndex(AUTHENTICATE)
        if status:
            return status, b"", _text(text)
        while True:
            revision = self.store.revision
            try:
                job = passwords.CHECK, passwords.check_job(self.store.password_of(name), password)
            except Denied as denied:
                if denied.status != errors.ID["AUTH_FAILED"]:
                    return denied.status, b"", denied.text
                # How long it takes must not tell whether there is such a user.
                job = passwords.PRETEND, passwords.pretend_job(password, self.cost)
            status, answer = yield Job(self.passwords, *job)
            if status:
                return status, b"", ""
            if answer != passwords.YES:
                log.warn(
                    "invalid authentication was requested",
                    user=name.decode("utf-8", "replace"),
                    error="auth: authentication failed, invalid user ID or password",
                )
                return errors.ID["AUTH_FAILED"], b"", ""
            if len(name) > NAME_BYTES_MAX:
                return errors.ID["UNKNOWN"], b"", NAME_TOO_LONG
            request = messages.encode_authenticate(name, self.tokens.new_prefix())
            status, answer = yield Proposal(AUTHENTICATE, request)
            if status:
                return status, b"", _text(answer)
            if revision == self.store.revision:
                break
            log.info("revision when password checked became stale; retrying")
        if self.tokens.signs:
            return (yield from self._signed(name, answer))
        return 0, answer, ""

    def _signed(self, name, answer):
        """The answer with a JWT in it: until now its token is the revision that goes into the claims."""
        response = rpcs.message_class("etcdserverpb.AuthenticateResponse").FromString(answer)
        status, token = yield Job(self.tokens.helper, signing.SIGN, signing.sign_job(name, int(response.token)))
        if status:
            return status, b"", _text(token)
        response.token = token.decode()
        return 0, response.SerializeToString(), ""

    def _user_add(self, services, call, payload):
        name, password, no_password, hashed = messages.user_add(payload)
        del payload
        refused = yield from self._admin(USER_ADD, call)
        if refused:
            return refused
        if not name:
            return errors.ID["USER_EMPTY"], b"", ""
        if not no_password:
            status, hashed, text = yield from self._hashed(password)
            if status:
                return status, b"", text
        return (yield from _propose(USER_ADD, messages.encode_user_add(name, no_password, hashed)))

    def _change_password(self, services, call, payload):
        name, password, hashed = messages.texts(payload, 1, 2, 3)
        del payload
        refused = yield from self._admin(USER_CHANGE_PASSWORD, call)
        if refused:
            return refused
        if password:
            status, hashed, text = yield from self._hashed(password)
            if status:
                return status, b"", text
        return (yield from _propose(USER_CHANGE_PASSWORD, messages.encode_change_password(name, hashed)))

    def _admin(self, method, call):
        """The answer for somebody who may not do this at all, before any work is done for him; else None."""
        status, text = yield ReadIndex(method)
        if status:
            return status, b"", _text(text)
        try:
            self.store.need_admin(call.user)
        except Denied as denied:
            return denied.status, b"", denied.text
        return None

    def _hashed(self, password):
        """(error id, base64 of the hash, text)"""
        if len(password) > passwords.PASSWORD_BYTES_MAX:
            return errors.ID["UNKNOWN"], b"", passwords.TOO_LONG
        status, answer = yield Job(self.passwords, passwords.HASH, passwords.hash_job(password, self.cost))
        return status, base64.b64encode(answer), ""


def _propose(method, request):
    status, answer = yield Proposal(method, request)
    if status:
        return status, b"", _text(answer)
    return 0, answer, ""


def _text(payload):
    """The text of an error where it has one of its own; else the table has it."""
    return text_of(errors.ID["UNKNOWN"], payload) if payload else ""


def _tokens(config, page, doorbell, clock):
    try:
        kind, options, unknown = authtoken.parse(config.auth_token)
    except ValueError as err:
        raise HelperError(str(err)) from None
    if kind == "jwt":
        if unknown:
            log.warn("unknown JWT options", keys=unknown)
        return JwtTokens(page, signing.helper(options, doorbell), clock)
    if kind == "simple":
        log.warn("simple token is not cryptographically signed")
        return SimpleTokens(page, config.auth_token_ttl * 10**9 or 300 * 10**9, clock)
    return NoTokens()
