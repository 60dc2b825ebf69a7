"""Elections: who may be voted for, and how a vote stands."""

from etcdfast.consensus.raft.progress import majority

PENDING, WON, LOST = range(3)


class Ballot:
    """The answers to one request for votes; the first answer of a member counts."""

    __slots__ = ("_answers",)

    def __init__(self):
        self._answers = {}

    def clear(self):
        self._answers.clear()

    def record(self, member, granted):
        self._answers.setdefault(member, granted)

    def result(self, voters):
        """PENDING, WON or LOST among these voters; answers of others do not count."""
        granted = refused = 0
        for voter in voters:
            answer = self._answers.get(voter)
            if answer:
                granted += 1
            elif answer is False:
                refused += 1
        needed = majority(len(voters))
        if granted >= needed:
            return WON
        return LOST if len(voters) - refused < needed else PENDING


def up_to_date(log, index, term):
    """Whether a log that ends with that entry is at least as new as this one: then it holds all that is committed."""
    last = log.last_index
    last_term = log.term(last)
    return term > last_term or (term == last_term and index >= last)
