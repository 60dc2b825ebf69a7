"""What bench/micro/peerlink.py measures: entries from one link to another, without Python in between."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from etcdfast._ext.netsys cimport clock_ns
from etcdfast._ext.peerlink cimport LINK_APP, LINK_OK, PeerLink, link_flush, link_next, link_put_app, link_receive
from etcdfast._ext.peerwire cimport peer_entry_list, peer_entry_list_free, peer_entry_list_reserve, peer_message


def benchmark(PeerLink sender, PeerLink receiver, int messages, int entries, int data_bytes):
    """Nanoseconds to put, write, read and take `messages` MsgApps of `entries` entries each over the msgappv2 stream
    that joins the two links. Errors: RuntimeError when not all came; MemoryError."""
    cdef peer_entry_list list
    cdef peer_message m
    cdef bytes data = bytes(data_bytes)
    cdef uint64_t index = 0, taken = 0, started
    cdef int64_t code = 0
    cdef int sent = 0, put = LINK_OK, left
    cdef int i
    memset(&list, 0, sizeof(peer_entry_list))
    if not peer_entry_list_reserve(&list, <uint32_t>entries):
        raise MemoryError
    for i in range(entries):
        list.rows[i].term = 1
        list.rows[i].type = 0
        list.rows[i].data = data
        list.rows[i].data_bytes = <uint32_t>data_bytes
    started = clock_ns()
    with nogil:
        while taken < <uint64_t>messages:
            if sent < messages and put == LINK_OK:
                for i in range(entries):
                    list.rows[i].index = index + 1 + i
                put = link_put_app(&sender.link, 1, index, 1, index, list.rows, <uint32_t>entries)
                if put == LINK_OK:
                    sent += 1
                    index += entries
            left = link_flush(&sender.link, LINK_APP)
            if left < 0:
                break
            if left == 0:
                put = LINK_OK
            code = link_receive(&receiver.link, LINK_APP)
            if code < 0:
                break
            code = link_next(&receiver.link, LINK_APP, &m)
            while code == 1:
                taken += 1
                code = link_next(&receiver.link, LINK_APP, &m)
            if code < 0:
                break
    peer_entry_list_free(&list)
    if taken != <uint64_t>messages:
        raise RuntimeError(f"{taken} of {messages} messages came, code {code}")
    return clock_ns() - started
