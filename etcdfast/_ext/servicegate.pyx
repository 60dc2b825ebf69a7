"""The loop as apply/services.py sees it; see servicegate.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from etcdfast._ext.applyloop cimport ApplyLoop
from etcdfast._ext.authtable cimport AuthTable
from etcdfast._ext.longread cimport PART_BYTES, asker
from etcdfast._ext.ring cimport IPC_END, IPC_FLAG_NEW_ID, IPC_MESSAGE, IPC_PART, IPC_REPLY, IPC_REPLY_BYTES_MAX
from etcdfast._ext.rpcids cimport RPC_LEASE_GRANT


cdef class ServiceGate:
    def __cinit__(self, ApplyLoop loop):
        self.loop = loop

    def propose(self, int method, bytes request, uint32_t token, bytes user=b"", uint64_t auth_revision=0):
        """Ask consensus to log a request of this member's own; False while there is no room.

        `token`: services.answered gets it with the answer; 0 when nobody waits. `user`: in whose name."""
        cdef uint32_t user_bytes = <uint32_t>PyBytes_GET_SIZE(user)
        if user_bytes:
            request = request + user
            auth_revision = auth_revision or self.loop.ops.auth.revision
        return bool(self.loop.out.propose(
            method, IPC_FLAG_NEW_ID if method == RPC_LEASE_GRANT else 0, PyBytes_AS_STRING(request),
            <uint64_t>PyBytes_GET_SIZE(request), token, user_bytes, auth_revision))

    def read(self, int method, uint32_t token, int64_t deadline_ns):
        """Ask for the state to be new enough for a linearizable read; answered as a proposal is."""
        return bool(self.loop.out.read_index(method, token, <uint64_t>deadline_ns))

    def reply(self, bytes who, int status, bytes payload, str text):
        """The whole answer of a call: a response, or an error whose text may replace the table's."""
        cdef asker to
        cdef bytes raw
        memcpy(&to, PyBytes_AS_STRING(who), sizeof(asker))
        if status:
            raw = text.encode()
            self.loop.out.post(&to, IPC_REPLY, status, PyBytes_AS_STRING(raw), <uint64_t>PyBytes_GET_SIZE(raw))
        else:
            self.loop.reply_cold(&to, (0, payload))

    def message(self, bytes who, bytes payload):
        """One message of a stream; in parts when it is large."""
        cdef asker to
        cdef const char *data = PyBytes_AS_STRING(payload)
        cdef uint64_t size = <uint64_t>PyBytes_GET_SIZE(payload)
        cdef uint64_t at = 0
        cdef uint64_t part
        memcpy(&to, PyBytes_AS_STRING(who), sizeof(asker))
        if size <= IPC_REPLY_BYTES_MAX:
            self.loop.out.post(&to, IPC_MESSAGE, 0, data, size)
            return
        self.loop.out.begin(&to, size)
        while at < size:
            part = min(size - at, <uint64_t>PART_BYTES)
            self.loop.out.post(&to, IPC_PART, 0, data + at, part)
            at += part

    def end(self, bytes who, int status, str text):
        """END of a stream that had a message."""
        cdef asker to
        cdef bytes raw = text.encode()
        memcpy(&to, PyBytes_AS_STRING(who), sizeof(asker))
        self.loop.out.post(&to, IPC_END, status, PyBytes_AS_STRING(raw), <uint64_t>PyBytes_GET_SIZE(raw))

    def may_read(self, bytes user, uint64_t auth_revision, bytes key, bytes range_end):
        """Error id of why the caller may not read that now, 0 none."""
        cdef AuthTable auth = self.loop.ops.auth
        return auth.may_read(user, auth_revision or (auth.revision if user else 0), key, range_end)
