"""What the core asks of a log. In the member it is `_ext.raftlog.RaftLog`."""

from typing import Protocol


class Log(Protocol):
    """Positions and terms only: the data of entries never passes through the core."""

    @property
    def last_index(self) -> int: ...

    def term(self, index: int) -> int:
        """Term of the entry at `index`; 0 when it is beyond the end or already released."""

    def append(self, term: int, data: bytes, type: int = 0) -> int:
        """Append one entry and return its index. The core appends only a new leader's empty entry."""
