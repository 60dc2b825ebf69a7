"""Who votes and who only listens, and what one change does to that."""

from etcdfast.consensus.raft.messages import (
    ADD_LEARNER_NODE,
    ADD_NODE,
    NOBODY,
    REMOVE_NODE,
    UnsupportedConfiguration,
)
from etcdfast.formats.raftpb import ConfState


def checked(conf_state):
    """The state in canonical order. Errors: UnsupportedConfiguration for a joint one."""
    if conf_state.voters_outgoing or conf_state.learners_next:
        raise UnsupportedConfiguration("a joint configuration, which no etcd makes")
    return ConfState(tuple(sorted(conf_state.voters)), tuple(sorted(conf_state.learners)))


def changed(conf_state, change):
    """The state after one ConfChange. Of one that was refused when applied the member is 0, which changes nothing."""
    voters, learners = set(conf_state.voters), set(conf_state.learners)
    member = change.node_id
    if member == NOBODY:
        return conf_state
    if change.type == ADD_NODE:
        voters.add(member)
        learners.discard(member)
    elif change.type == ADD_LEARNER_NODE:
        voters.discard(member)
        learners.add(member)
    elif change.type == REMOVE_NODE:
        voters.discard(member)
        learners.discard(member)
    return ConfState(tuple(sorted(voters)), tuple(sorted(learners)))
