"""Which tokens are valid, and whose: simple tokens, JWT, or none at all (--auth-token).

Simple tokens come into being with the Authenticate entry of the log, on every member alike, and live in memory: a
table that frontends read themselves (etcdfast/_ext/tokenpage), so a request with a known token needs nobody. JWT tokens
say by themselves whose they are; one is verified once, in a helper process (signing.py), and stays in that table until
it expires.

Source: reference/formats.md section 10.1.
"""

import secrets
import string

from etcdfast import log
from etcdfast._ext.tokenpage import NAME_BYTES_MAX, TokenError
from etcdfast.api import errors
from etcdfast.apply.auth import signing

SWEEP_NS = 1_000_000_000
PREFIX_LETTERS = 16
TOKEN_BYTES_MAX = 2048
JWT_RECHECK_NS = 3600 * 10**9  # of one that never expires
VERDICTS_MAX = 4096


class SimpleTokens:
    """`page`: the TokenPage; `ttl_ns`: how long a token lives without use; `clock`: CLOCK_MONOTONIC ns."""

    signs = False

    def __init__(self, page, ttl_ns, clock):
        self._page = page
        self._ttl_ns = ttl_ns
        self._clock = clock
        self._enabled = False

    def enable(self):
        self._enabled = True

    def disable(self):
        self._enabled = False
        self._page.clear()

    def new_prefix(self):
        return "".join(secrets.choice(string.ascii_letters) for _ in range(PREFIX_LETTERS)).encode()

    def assign(self, user, prefix, index, revision):
        """The token of an Authenticate entry at `index`."""
        token = prefix + b".%d" % index
        if self._enabled:
            try:
                # Revision 0: it counts as established at whatever the auth revision is when it is used, as in etcd.
                self._page.put(token, user, self._clock(), ttl_ns=self._ttl_ns)
            except TokenError as err:
                log.warn("a token cannot be used on this member", error=str(err))
        return token

    def drop_user(self, user):
        self._page.remove_user(user)

    def check(self, token, applied_index):
        """True, False, or None: it may come with an entry that is not applied here yet."""
        index = token.split(b".")[1:]
        if len(index) != 1 or not index[0].isdigit() or len(index[0]) > 20:
            return False
        if int(index[0]) > applied_index:
            return None
        return self._page.get(token, self._clock()) is not None

    def sweep(self):
        """Forget those whose time is over."""
        if self._page.next_due_ns and self._page.next_due_ns <= self._clock():
            self._page.expire(self._clock())


class JwtTokens:
    """`helper`: of signing.py. Which members sign with which keys is the operator's affair, as in etcd."""

    signs = True

    def __init__(self, page, helper, clock):
        self._page = page
        self.helper = helper
        self._clock = clock
        self._asked = set()
        self._verdicts = {}  # token -> whether it is valid, until somebody asks again

    def enable(self):
        pass

    def disable(self):
        pass  # they say by themselves how long they are valid; without auth nobody looks at them

    def new_prefix(self):
        return b""

    def assign(self, user, prefix, index, revision):
        """What is signed for whoever waits: nobody else needs the token."""
        return b"%d" % revision

    def drop_user(self, user):
        pass

    def check(self, token, applied_index):
        """True, False, or None: it is being verified."""
        if self._page.get(token, self._clock()) is not None:
            return True
        verdict = self._verdicts.pop(token, None)
        if verdict is not None:
            return verdict
        if len(token) > TOKEN_BYTES_MAX:
            return False
        if token not in self._asked and self.helper.submit(token, signing.VERIFY, token, self._verified):
            self._asked.add(token)
        return None

    def sweep(self):
        if self._page.next_due_ns and self._page.next_due_ns <= self._clock():
            self._page.expire(self._clock())

    def reload(self, helper):
        """Other keys: what the old ones had verified does not count any more."""
        old, self.helper = self.helper, helper
        old.close()
        self._asked.clear()
        self._verdicts.clear()
        self._page.clear()

    def _verified(self, token, status, answer):
        self._asked.discard(token)
        valid = False
        if not status:
            left_ns, revision, user = signing.read_verified(answer)
            expires_ns = self._clock() + (left_ns or JWT_RECHECK_NS)
            try:
                self._page.put(token, user, self._clock(), revision=revision, expires_ns=expires_ns)
                valid = True
            except TokenError as err:
                log.warn("a token cannot be used on this member", error=str(err))
        elif status == errors.ID["UNKNOWN"]:
            log.warn("failed to parse a JWT token", error=answer.decode("utf-8", "replace"))
        while len(self._verdicts) >= VERDICTS_MAX:
            del self._verdicts[next(iter(self._verdicts))]
        self._verdicts[token] = valid


class NoTokens:
    """--auth-token="": users come by certificate alone."""

    signs = False

    def enable(self):
        pass

    disable = sweep = enable

    def new_prefix(self):
        return b""

    def assign(self, user, prefix, index, revision):
        return None

    def drop_user(self, user):
        pass

    def check(self, token, applied_index):
        return False


__all__ = ["JwtTokens", "NAME_BYTES_MAX", "NoTokens", "SimpleTokens"]
