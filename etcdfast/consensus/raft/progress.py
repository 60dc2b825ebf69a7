"""What the leader knows of each member, and what a majority of them has."""


class Progress:
    """One member as the leader sees it.

    match: highest index known to be durable there, and equal to the leader's entry.
    next:  index of the next entry to send; match < next.
    """

    __slots__ = ("match", "next")

    def __init__(self, following):
        self.match = 0
        self.next = following

    def persisted(self, index):
        """Take in that `index` is durable at the member. True when that is news."""
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        return True


def majority_match(matches):
    """Highest index that a majority of the voters has; `matches` holds one number per voter.

    Of n sorted numbers the one at (n - 1) // 2 is reached by n // 2 + 1 voters.
    """
    return sorted(matches)[(len(matches) - 1) // 2]


def majority(voters):
    """Votes that decide among that many voters."""
    return voters // 2 + 1
