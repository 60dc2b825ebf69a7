# Software transactions of etcd's client library (concurrency.STM, concurrency.Mutex) as steps of a load client.
#
# A transaction is: take the lock (if one is asked for), read its keys one after another, commit what
# was read and what is written in one Txn that compares; on conflict the same again. Each step is one
# call. The steps, the comparisons and the keys of the lock are those of etcd's client/v3/concurrency.

from libc.stdint cimport int32_t, int64_t, uint8_t

from etcdfast._ext.loadtypes cimport Client, Load


# Room for one client's transactions. 0, or -1 when there is no memory.
cdef int stm_new(Load* g, int32_t i) noexcept nogil
cdef void stm_free(Client* client) noexcept nogil
# Put the request of the client's next step, framed, into client.stm.request.
cdef void stm_build(Load* g, Client* client) noexcept nogil
# A message of the answer. 0; 1: nothing more is wanted of this stream; END_MESSAGE.
cdef int stm_message(Load* g, Client* client, const uint8_t* p, size_t n) noexcept nogil
# The step was answered without error: go on to the next one, or settle the transaction.
cdef void stm_answered(Load* g, int32_t i, int64_t now) noexcept nogil
