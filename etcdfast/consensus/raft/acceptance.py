"""The follower's side of replication: what it took from its leader, and what of it may be acknowledged.

An acknowledgement promises that the entries are on this member's disk, so it waits for the disk; one answer
covers every message that came in the meantime.
"""

from etcdfast.consensus.raft.messages import RaftFault


class Acceptance:
    """stable: up to here the log is durable. Survives changes of leader; falls when entries are replaced.

    accepted: up to here the log is the leader's. acked: up to here the leader was told that it is durable.
    owed: a message waits for its answer, and for the disk. Of the present leader only.
    """

    __slots__ = ("stable", "accepted", "acked", "owed", "replaced_from", "_log")

    def __init__(self, log):
        self._log = log
        self.stable = log.last_index
        self.replaced_from = 0  # first entry that the last `append` wrote, 0 for none
        self.follow_nobody()

    def follow_nobody(self):
        self.accepted = 0
        self.acked = 0
        self.owed = False

    def append(self, message, commit):
        """Take the entries of a MsgApp.

        The index up to which the log is now known to be the leader's; -1 when it lacks what comes before them.
        Errors: RaftFault when the leader's entries contradict what is committed here.
        """
        log, entries = self._log, message.entries
        before = message.index
        self.replaced_from = 0
        if before < commit:
            # What is committed is the leader's too; an old message brings no news.
            last = commit
        else:
            if before > log.last_index or log.term(before) != message.log_term:
                if before == commit:
                    raise RaftFault(
                        f"entry {before} is committed with term {log.term(before)}, but the leader {message.frm:x} "
                        f"has it with term {message.log_term}"
                    )
                return -1
            last = before
            if entries is not None and entries.count:
                last = entries.last
                start = log.conflict(entries)
                if start:
                    log.extend(entries, start)
                    self.replaced_from = start
                    if start <= self.stable:
                        self.stable = start - 1
        if last > self.accepted:
            self.accepted = last
        self.owed = True
        return last

    def answer(self, at_once):
        """Index to acknowledge now, or -1 for nothing.

        at_once: a message came; its answer may wait for the disk, which will bring it as a whole.
        """
        accepted = self.accepted
        if accepted <= self.stable:
            if not self.owed and accepted <= self.acked:
                return -1
            self.owed = False
            self.acked = accepted
            return accepted
        if at_once or self.stable <= self.acked:
            return -1
        self.acked = self.stable
        return self.stable
