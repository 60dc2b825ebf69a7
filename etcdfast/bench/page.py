"""Layout of the page that the generator processes of a run share; int64 at each offset, see `Generator`."""

from __future__ import annotations

import mmap
import struct

NEXT_OFFSET = 0
STOP_OFFSET = 64  # load clients take no further request
GO_OFFSET = 72  # watch loads: every watcher is made, the load may begin
FINISH_OFFSET = 80  # watch loads: nothing more is waited for
DONE_OFFSET = 128
ROW_BYTES = 64  # of each worker: requests done, watchers made, events received


def flag(page: mmap.mmap, offset: int) -> int:
    return struct.unpack_from("=q", page, offset)[0]


def raise_flag(page: mmap.mmap, offset: int) -> None:
    struct.pack_into("=q", page, offset, 1)


def sums(page: mmap.mmap, processes: int) -> tuple[int, int, int]:
    """Requests done, watchers made and events received over all workers."""
    rows = [struct.unpack_from("=3q", page, DONE_OFFSET + ROW_BYTES * worker) for worker in range(processes)]
    return tuple(sum(column) for column in zip(*rows, strict=True))
