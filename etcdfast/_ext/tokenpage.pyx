"""Auth tokens in shared memory; see tokenpage.pxd and tokenpage.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

import heapq
import os

cdef uint64_t NEVER = 0xFFFFFFFFFFFFFFFFu

SLOTS_DEFAULT = 1 << 16     # 20 MiB of address space; pages are there once they are written
NAME_BYTES_MAX = TOKEN_NAME_BYTES


class TokenError(Exception):
    """The table could not be made, mapped or written."""


def format_tokens(int fd, uint64_t slots=1 << 16):
    cdef uint64_t key[2]
    secret = os.urandom(16)
    key[0] = int.from_bytes(secret[:8], "little")
    key[1] = int.from_bytes(secret[8:], "little")
    cdef int rc = token_format(fd, slots, key[0], key[1])
    if rc:
        raise TokenError(f"table of {slots} tokens: {os.strerror(-rc)}")


cdef class TokenReader:

    def __cinit__(self, int fd):
        memset(&self.view, 0, sizeof(token_view))
        cdef int rc = token_map(&self.view, fd)
        if rc:
            raise TokenError(f"cannot map the table of tokens: {os.strerror(-rc)}")
        self.mapped = True

    def __dealloc__(self):
        if self.mapped:
            token_unmap(&self.view)

    def find(self, bytes token not None, uint64_t now_ns):
        cdef uint64_t hash[2]
        cdef token_found found
        token_hash(&self.view, PyBytes_AS_STRING(token), <uint64_t>PyBytes_GET_SIZE(token), hash)
        if not token_find(&self.view, hash, &found) or not token_use(&found, now_ns):
            return None
        return PyBytes_FromStringAndSize(found.name, <Py_ssize_t>found.name_size), found.revision


cdef class _Entry:
    cdef bytes token
    cdef bytes user
    cdef uint64_t revision
    cdef uint64_t ttl_ns
    cdef uint64_t expires_ns
    cdef uint64_t used_ns       # while it has no slot
    cdef token_slot *slot       # NULL: lost to another token

    cdef uint64_t used(self) noexcept:
        cdef uint64_t stamped
        if self.slot == NULL:
            return self.used_ns
        stamped = token_used(self.slot)
        return stamped if stamped > self.used_ns else self.used_ns

    cdef uint64_t due(self) noexcept:
        """When it ends unless it is used again."""
        return token_due(self.used(), self.ttl_ns, self.expires_ns)


cdef class TokenPage:
    cdef token_view view
    cdef bint mapped
    cdef dict entries           # token -> _Entry
    cdef dict holders           # number of a slot -> _Entry
    cdef dict users             # user -> {token: None}
    cdef list due               # heap of (time, token); an entry's real end may be later
    cdef Py_ssize_t tokens_max

    def __cinit__(self, int fd, Py_ssize_t tokens_max=1 << 18):
        memset(&self.view, 0, sizeof(token_view))
        cdef int rc = token_map(&self.view, fd)
        if rc:
            raise TokenError(f"cannot map the table of tokens: {os.strerror(-rc)}")
        self.mapped = True
        self.tokens_max = tokens_max
        self.entries = {}
        self.holders = {}
        self.users = {}
        self.due = []

    def __dealloc__(self):
        if self.mapped:
            token_unmap(&self.view)

    def __len__(self):
        return len(self.entries)

    def __contains__(self, bytes token not None):
        return token in self.entries

    @property
    def next_due_ns(self):
        return self.due[0][0] if self.due and self.due[0][0] != NEVER else 0

    def put(self, bytes token not None, bytes user not None, uint64_t now_ns, *, uint64_t revision=0, uint64_t ttl_ns=0,
            uint64_t expires_ns=0):
        cdef _Entry entry
        if len(user) > TOKEN_NAME_BYTES:
            raise TokenError(f"a user name of {len(user)} bytes is too long for a token")
        if token in self.entries:
            self.remove(token)
        elif len(self.entries) >= self.tokens_max:
            self._drop_idle(now_ns)
        entry = _Entry()
        entry.token = token
        entry.user = user
        entry.revision = revision
        entry.ttl_ns = ttl_ns
        entry.expires_ns = expires_ns
        entry.used_ns = now_ns
        entry.slot = NULL
        self.entries[token] = entry
        self.users.setdefault(user, {})[token] = None
        heapq.heappush(self.due, (entry.due(), token))
        self._show(entry, now_ns)
        if len(self.due) > 64 and len(self.due) > 4 * len(self.entries):
            self._rebuild()

    def get(self, bytes token not None, uint64_t now_ns):
        cdef _Entry entry = self.entries.get(token)
        if entry is None:
            return None
        if not token_lives(entry.used(), entry.ttl_ns, entry.expires_ns, now_ns):
            self._forget(entry)
            return None
        entry.used_ns = now_ns
        if entry.slot == NULL:
            self._show(entry, now_ns)
        return entry.user, entry.revision

    def remove(self, bytes token not None):
        cdef _Entry entry = self.entries.get(token)
        if entry is None:
            return False
        self._forget(entry)
        return True

    def remove_user(self, bytes user not None):
        tokens = list(self.users.get(user, ()))
        for token in tokens:
            self._forget(self.entries[token])
        return len(tokens)

    def clear(self):
        for entry in list(self.entries.values()):
            self._forget(entry)
        self.due.clear()

    def expire(self, uint64_t now_ns):
        cdef _Entry entry
        cdef uint64_t at
        ended = []
        while self.due and self.due[0][0] <= now_ns:
            token = heapq.heappop(self.due)[1]
            entry = self.entries.get(token)
            if entry is None:
                continue
            at = entry.due()
            if at > now_ns:
                heapq.heappush(self.due, (at, token))
            else:
                self._forget(entry)
                ended.append(token)
        return ended

    cdef _show(self, _Entry entry, uint64_t now_ns):
        """Give the token a slot: a free one of its set, or that of the one used the longest time ago."""
        cdef uint64_t hash[2]
        cdef token_slot *set
        cdef token_slot *best
        cdef int i
        cdef _Entry holder
        token_hash(&self.view, PyBytes_AS_STRING(entry.token), <uint64_t>PyBytes_GET_SIZE(entry.token), hash)
        set = token_set(&self.view, hash)
        best = set
        for i in range(TOKEN_WAYS):
            if set[i].hash[0] == 0 and set[i].hash[1] == 0:
                best = set + i
                break
            if token_used(set + i) < token_used(best):
                best = set + i
        number = best - self.view.slots
        holder = self.holders.get(number)
        if holder is not None:
            holder.used_ns = holder.used()
            holder.slot = NULL
        self.holders[number] = entry
        entry.slot = best
        token_write(best, hash, PyBytes_AS_STRING(entry.user), <uint32_t>PyBytes_GET_SIZE(entry.user), entry.revision,
                    entry.ttl_ns, entry.expires_ns, entry.used_ns)

    cdef _forget(self, _Entry entry):
        cdef uint64_t none[2]
        none[0] = none[1] = 0
        del self.entries[entry.token]
        tokens = self.users[entry.user]
        del tokens[entry.token]
        if not tokens:
            del self.users[entry.user]
        if entry.slot != NULL:
            del self.holders[entry.slot - self.view.slots]
            token_write(entry.slot, none, NULL, 0, 0, 0, 0, 0)
            entry.slot = NULL

    cdef _drop_idle(self, uint64_t now_ns):
        """Room for one more: whose end is nearest was, among tokens of one TTL, used the longest time ago."""
        cdef _Entry entry
        cdef uint64_t at
        if self.expire(now_ns):
            return
        while self.due:
            known, token = heapq.heappop(self.due)
            entry = self.entries.get(token)
            if entry is None:
                continue
            at = entry.due()
            if at > known:
                heapq.heappush(self.due, (at, token))
                continue
            self._forget(entry)
            return

    cdef _rebuild(self):
        """Without what the heap holds of tokens that are gone."""
        cdef _Entry entry
        self.due = [(entry.due(), entry.token) for entry in self.entries.values()]
        heapq.heapify(self.due)
