"""From the peer thread to the main thread: a bounded queue that an epoll loop can watch, and answers that come back."""

import os
from collections import deque

INBOX_MAX = 8192
# What main asked for is bounded by main, and without its end main would wait for ever.
_NEVER_REFUSED = {"call", "removed", "failed"}


class Inbox:
    """Tuples for the main thread: `put` from any thread, `take` by the main one; `fd` is readable while it has some."""

    def __init__(self, items_max=INBOX_MAX):
        self._items = deque()
        self._items_max = items_max
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def put(self, *item):
        """False when the queue is full: the item was not taken."""
        if self.fd < 0 or len(self._items) >= self._items_max and item[0] not in _NEVER_REFUSED:
            return False
        self._items.append(item)
        os.eventfd_write(self.fd, 1)
        return True

    def take(self):
        """Everything that is there, oldest first."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass
        # Read first: what is put from now on rings again.
        items = []
        while self._items:
            items.append(self._items.popleft())
        return items

    def close(self):
        """Forget what nobody took. The peer thread must have ended."""
        if self.fd >= 0:
            for item in self.take():
                if item[0] in ("stream_out", "stream_in"):
                    item[3].close()
            os.close(self.fd)
            self.fd = -1


class Reply:
    """The answer to one request of a peer: call it once, from any thread."""

    def __init__(self, loop):
        self._loop = loop
        self.future = loop.create_future()

    def __call__(self, status, body=b"", content_type=None):
        try:
            self._loop.call_soon_threadsafe(self._set, (status, body, content_type))
        except RuntimeError:  # the thread has ended, and with it who asked
            pass

    def _set(self, answer):
        if not self.future.done():
            self.future.set_result(answer)
