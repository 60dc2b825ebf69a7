"""What goes into the core and comes out of it: messages, states, and the ways to refuse.

Message types and fields are those of raftpb (formats.md section 2); two differ in form:
- `entries` never carries data out: an outbound MsgApp holds a Span of the own log, and whoever writes it to the
  wire finds the entries there. Inbound MsgApp and MsgProp hold a batch (log.py) whose data lives as long as `step`.
- MsgReadIndex and MsgReadIndexResp hold their context in `context`. On the wire it is the data of their only entry.
"""

from collections import namedtuple

from etcdfast.formats.raftpb import ConfState

MSG_PROP, MSG_APP, MSG_APP_RESP, MSG_VOTE, MSG_VOTE_RESP, MSG_SNAP, MSG_HEARTBEAT, MSG_HEARTBEAT_RESP = range(2, 10)
MSG_TRANSFER_LEADER, MSG_TIMEOUT_NOW, MSG_READ_INDEX, MSG_READ_INDEX_RESP = range(13, 17)
MSG_PRE_VOTE, MSG_PRE_VOTE_RESP = range(17, 19)

CAMPAIGN_TRANSFER = b"CampaignTransfer"  # context of a vote that a leader asked for

FOLLOWER, CANDIDATE, LEADER, PRE_CANDIDATE = range(4)
ROLE_NAMES = ("follower", "candidate", "leader", "pre-candidate")
NOBODY = 0  # as `vote`, as `leader`, as `to` and `frm`

# raftpb.ConfChangeType and EntryType
ADD_NODE, REMOVE_NODE, UPDATE_NODE, ADD_LEARNER_NODE = range(4)
ENTRY_NORMAL, ENTRY_CONF_CHANGE = range(2)

Message = namedtuple(
    "Message",
    "type to frm term log_term index commit entries reject reject_hint context snapshot",
    defaults=(NOBODY, NOBODY, 0, 0, 0, 0, None, False, 0, b"", None),
)
# Entries first .. last of the own log; last = first - 1 when there are none.
Span = namedtuple("Span", "first last")
SnapshotMeta = namedtuple("SnapshotMeta", "index term conf_state")

HardState = namedtuple("HardState", "term vote commit")
ReadState = namedtuple("ReadState", "index context")
ConfChange = namedtuple("ConfChange", "type node_id")

NEW = HardState(0, NOBODY, 0)
NO_MEMBERS = ConfState(())

# hard_state: to be written, None when unchanged. must_sync: its term or vote changed.
# soft: (role, leader) when changed.
# commit: hand over up to here: committed, and on the own disk. `hard_state.commit` is the same number.
# reads: confirmed reads (ReadState), to be served behind `index`, which may lie ahead of `commit`.
# messages: to be sent, in any order, at once: what depends on the own disk is not among them yet.
# snapshot: SnapshotMeta to be made durable in the place of everything before, None for none.
# snapshots_wanted: members that need a snapshot; the core waits for `snapshot_sent` and `report_snapshot`.
Ready = namedtuple("Ready", "hard_state must_sync soft commit reads messages snapshot snapshots_wanted")

# election_ticks: without a leader for that long (and up to twice that, by chance) a member campaigns.
# random(n): an integer in [0, n). message_bytes_max: entries of one MsgApp, at least one entry.
# inflight_max: messages under way to one member; of those that are full, inflight_full_max.
RaftConfig = namedtuple(
    "RaftConfig",
    "id election_ticks random heartbeat_ticks pre_vote message_bytes_max inflight_max inflight_full_max",
    defaults=(1, True, 1 << 20, 512, 16),
)


class ProposalDropped(Exception):
    """This member cannot take a proposal or a read now; the reason in one line."""


class UnsupportedConfiguration(Exception):
    """A configuration that no etcd makes: joint ones."""


class RaftFault(Exception):
    """What cannot happen in a cluster whose disks keep what they acknowledged. The member must stop."""
