"""What apply does with the identities of requests: who is refused, and why.

Two kinds of checks, as in etcd. Those of entries (KvOps, LeaseOps.revoke) know the entry's header alone and come out
the same on every member. Those of calls and reads are this member's own, made when the call is begun. Requests that
only root may make and that consensus carries out or logs (is_relayed) come here first and go on in the name of nobody.

Source: etcd's server/etcdserver/apply/auth, v3_server and v3rpc (see reference/etcd-behaviour.md, auth rules).
"""

from libc.stdint cimport int64_t, uint64_t

from etcdfast._ext.authtable cimport AuthTable
from etcdfast._ext.kvops cimport KvOps
from etcdfast._ext.kvreq cimport bytes_view
from etcdfast._ext.outbox cimport Outbox
from etcdfast._ext.ring cimport ipc_record

cdef enum:
    CHECKS_MAX = 4096          # questions after tokens that wait; more are refused
    FEW_CHECKS = 64            # that are asked about again in every turn; of more, each costs a pause of
    CHECK_STEP_NS = 10000      # so much between two rounds
    CHECK_NS = 5000000000      # that one waits at most, less than its call may; etcd waits as long as the client does


cdef class AuthGate:
    cdef AuthTable table
    cdef KvOps ops
    cdef Outbox out
    cdef object cold            # cold.auth.check_token(token) -> True, False or None (later)
    cdef list waiting           # [(asker of a token check as bytes, token, until ns)]
    cdef uint64_t asked_ns      # when they were asked last

    # Whose an entry is, into ops.caller.
    cdef void admit_entry(self, const bytes_view *entry) noexcept nogil
    # Whose request a READ or CALL is, into ops.caller.
    cdef void admit(self, const ipc_record *r) noexcept nogil
    # The same, and why it may not be answered: ERR_ id, 0 none. Range and what is no key-value request are checked
    # whole; a transaction is not, KvOps does that.
    cdef int check(self, const ipc_record *r) noexcept nogil
    cdef int refuses(self, const ipc_record *r) noexcept nogil
    # Words of the status page that frontends look at with each call.
    cdef void publish(self, void *page) noexcept nogil
    # A CALL with one of IPC_TOKEN_CHECK and is_relayed.
    cdef int take(self, ipc_record *r) except -1
    # A CALL of what consensus does: refused, or on its way there.
    cdef int relay(self, ipc_record *r) except -1
    # Of a call that services.py carries out: (status, text) when it is refused, None when not.
    cdef object service_refused(self, const ipc_record *r)
    # Its (message, name of the call, user, auth revision); the revision of a simple token is 0: it holds at any.
    cdef tuple parts(self, const ipc_record *r, bytes name)
    # A question after a token.
    cdef int token_check(self, ipc_record *r) except -1
    # Ask again for those whose answer was not known yet. 1: somebody got an answer.
    cdef int ask_again(self, uint64_t applied_index, int64_t now_ns) except -1
    cdef int answer_check(self, bytes raw, verdict) except -1

    cdef int too_new(self) noexcept nogil
    # Precondition of these: admit was called.
    cdef int may_renew(self, int64_t lease) noexcept nogil
    cdef int may_list_leases(self) noexcept nogil
    cdef int may_see_keys(self, int64_t lease) noexcept nogil
