"""Raft as a pure state machine: no sockets, clock, disk or random source but what is passed in.

core           roles, terms, commit; what a process talks to
messages       what goes in and comes out;   log: what the core asks of a log
ballot         elections;                    configuration: voters and learners
replication    the leader's side, with progress of each member;   acceptance: the follower's side
readindex      linearizable reads at the leader
"""

from etcdfast.consensus.raft.core import Raft
from etcdfast.consensus.raft.log import Batch, Log
from etcdfast.consensus.raft.messages import (
    ADD_LEARNER_NODE,
    ADD_NODE,
    CANDIDATE,
    ENTRY_CONF_CHANGE,
    ENTRY_NORMAL,
    FOLLOWER,
    LEADER,
    PRE_CANDIDATE,
    REMOVE_NODE,
    ROLE_NAMES,
    UPDATE_NODE,
    ConfChange,
    ConfState,
    HardState,
    Message,
    ProposalDropped,
    RaftConfig,
    RaftFault,
    ReadState,
    Ready,
    SnapshotMeta,
    Span,
    UnsupportedConfiguration,
)

__all__ = [
    "ADD_LEARNER_NODE",
    "ADD_NODE",
    "CANDIDATE",
    "ENTRY_CONF_CHANGE",
    "ENTRY_NORMAL",
    "FOLLOWER",
    "LEADER",
    "PRE_CANDIDATE",
    "REMOVE_NODE",
    "ROLE_NAMES",
    "UPDATE_NODE",
    "Batch",
    "ConfChange",
    "ConfState",
    "HardState",
    "Log",
    "Message",
    "ProposalDropped",
    "Raft",
    "RaftConfig",
    "RaftFault",
    "ReadState",
    "Ready",
    "SnapshotMeta",
    "Span",
    "UnsupportedConfiguration",
]
