"""Raft as a pure state machine: no sockets, clock, disk or random source but what is passed in."""

from etcdfast.consensus.raft.core import (
    ADD_NODE,
    CANDIDATE,
    FOLLOWER,
    LEADER,
    ROLE_NAMES,
    ConfChange,
    HardState,
    ProposalDropped,
    Raft,
    RaftConfig,
    ReadState,
    Ready,
    UnsupportedConfiguration,
)
from etcdfast.consensus.raft.log import Log

__all__ = [
    "ADD_NODE",
    "CANDIDATE",
    "FOLLOWER",
    "LEADER",
    "ROLE_NAMES",
    "ConfChange",
    "HardState",
    "Log",
    "ProposalDropped",
    "Raft",
    "RaftConfig",
    "ReadState",
    "Ready",
    "UnsupportedConfiguration",
]
