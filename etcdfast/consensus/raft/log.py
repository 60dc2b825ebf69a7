"""What the core asks of a log. Positions and terms only: the data of entries never passes through the core."""

from typing import Protocol


class Batch(Protocol):
    """Entries that came with a message; their data belongs to whoever made the batch, during one `step`."""

    first: int  # 0 in a MsgProp, whose entries have no index yet
    last: int  # first - 1 when empty
    last_term: int
    count: int
    conf_changes: bool  # holds an entry of another type than ENTRY_NORMAL, or may hold one


class Log(Protocol):
    """`first_index` counts what can still be read, be it in memory or on disk."""

    @property
    def first_index(self) -> int: ...

    @property
    def last_index(self) -> int: ...

    def term(self, index: int) -> int:
        """Term of an entry from first_index - 1 to last_index; 0 when unknown."""

    def append(self, term: int, data: bytes, type: int = 0) -> int:
        """Append one entry and return its index."""

    def append_batch(self, term: int, entries: Batch) -> int:
        """Append the entries of a MsgProp with that term; the index of the last."""

    def conflict(self, entries: Batch) -> int:
        """First index of the batch that the log lacks or holds with another term; 0 when it holds all.

        Precondition: the log holds entries.first - 1.
        """

    def extend(self, entries: Batch, start: int) -> None:
        """Drop everything from `start` on and append the entries of the batch from `start` on."""

    def fit(self, first: int, last: int, bytes_max: int) -> int:
        """Last index of a message that starts at `first` and stays within bytes_max; at least `first`."""

    def restore(self, index: int, term: int) -> None:
        """Forget everything: the log goes on behind a snapshot."""


def last_of_term(log, index, term):
    """(index, term) of the last entry up to `index` whose term is at most `term`; the term is 0 when unknown.

    Terms never fall along a log, so halving finds it. Below what the log still knows it is taken on trust.
    """
    low = log.first_index - 1
    index = min(index, log.last_index)
    if index < low:
        return index, 0
    found = log.term(index)
    if found <= term:
        return index, found
    if log.term(low) > term:
        return max(low - 1, 0), 0
    high = index
    while high - low > 1:
        middle = (low + high) // 2
        if log.term(middle) <= term:
            low = middle
        else:
            high = middle
    return low, log.term(low)
