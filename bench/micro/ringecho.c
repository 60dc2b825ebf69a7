/* A consensus and apply that cost almost nothing: answers every request record with a constant message.
 * Built and driven by bench/micro/frontend.py; see there. */
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>

#include "ring.h"

enum { KIND_PROPOSE = 1, KIND_READ = 2, KIND_CALL = 3, KIND_REPLY = 9 };

static uint64_t answer_all(ring_view *in, ring_view *out, const char *reply, uint32_t reply_size) {
    uint64_t n = 0;
    ipc_record *r;
    while ((r = ring_peek(in)) != NULL) {
        if (r->kind >= KIND_PROPOSE && r->kind <= KIND_CALL && r->frontend != 0xff) {
            ipc_record *a = ring_claim(out, (uint32_t)sizeof *a + reply_size);
            if (a == NULL) {
                ring_publish(out);
                continue;
            }
            uint32_t length = a->length;
            *a = *r;
            a->length = length;
            a->kind = KIND_REPLY;
            a->status = 0;
            memcpy((char *)a + sizeof *a, reply, reply_size);
            ring_commit(out, a);
            n++;
        }
        ring_advance(in, r);
    }
    return n;
}

/* Serve until `*stop` is set (knock `bell` then). fds: two request rings and the answer ring; peer is the
 * frontend's doorbell. Returns the number of answers, or a negative errno. */
int64_t ringecho(const int *fds, int bell, int peer, const char *reply, uint32_t reply_size, volatile int *stop) {
    ring_view in[2], out;
    int rc = 0;
    memset(in, 0, sizeof in);
    if ((rc = ring_map(&in[0], fds[0], peer)) || (rc = ring_map(&in[1], fds[1], peer)) ||
        (rc = ring_map(&out, fds[2], peer)))
        return rc;
    int64_t answered = 0;
    while (!*stop) {
        uint64_t n = answer_all(&in[0], &out, reply, reply_size) + answer_all(&in[1], &out, reply, reply_size);
        ring_publish(&out);
        ring_release(&in[0]);
        ring_release(&in[1]);
        answered += (int64_t)n;
        if (n) continue;
        if (ring_sleep(&in[0]) & ring_sleep(&in[1])) {
            struct pollfd p = {.fd = bell, .events = POLLIN};
            poll(&p, 1, 100);
            uint64_t seen;
            ssize_t got = read(bell, &seen, 8);
            (void)got;
        }
        ring_awake(&in[0]);
        ring_awake(&in[1]);
    }
    return answered;
}
