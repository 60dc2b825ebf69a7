"""The few raft messages that a start or a snapshot needs, without the protobuf runtime (formats.md section 2).

Written as etcd 3.4 to 3.6 write them: every scalar, zero included, ascending by number. Read in any order,
with absent scalars as 0.
"""

from collections import namedtuple

from etcdfast._ext.wire import WireError, fields, varint

_VARINT, _BYTES = 0, 2

ConfState = namedtuple(
    "ConfState", "voters learners voters_outgoing learners_next auto_leave", defaults=((), (), (), 0)
)
ConfChange = namedtuple("ConfChange", "id type node_id context")


class RaftMessageError(ValueError):
    """Bytes that are no raft message of the kind expected."""


def put_uint(number, value):
    return varint(number << 3 | _VARINT) + varint(value)


def put_bytes(number, data):
    return varint(number << 3 | _BYTES) + varint(len(data)) + data


def read_fields(message, kinds):
    """{number: [values]} of the fields listed in `kinds` (number -> int or bytes); others are passed over.

    Errors: RaftMessageError for malformed bytes or a field of another wire type.
    """
    found = {number: [] for number in kinds}
    try:
        for number, _, value in fields(message):
            if number in found:
                if not isinstance(value, kinds[number]):
                    raise RaftMessageError(f"field {number} has the wrong type")
                found[number].append(value)
    except WireError as err:
        raise RaftMessageError(str(err)) from None
    return found


def _last(values, default=0):
    return values[-1] if values else default


def encode_conf_state(state):
    return b"".join(
        [
            *(put_uint(1, voter) for voter in state.voters),
            *(put_uint(2, learner) for learner in state.learners),
            *(put_uint(3, voter) for voter in state.voters_outgoing),
            *(put_uint(4, learner) for learner in state.learners_next),
            put_uint(5, state.auto_leave),
        ]
    )


def decode_conf_state(message):
    """Errors: RaftMessageError. Packed lists are not read: no etcd writes them."""
    found = read_fields(message, dict.fromkeys(range(1, 6), int))
    return ConfState(*(tuple(found[number]) for number in range(1, 5)), _last(found[5]))


def encode_conf_change(change):
    """A context of None is left out, as in a removal."""
    message = put_uint(1, change.id) + put_uint(2, change.type) + put_uint(3, change.node_id)
    return message if change.context is None else message + put_bytes(4, change.context)


def decode_conf_change(message):
    """Errors: RaftMessageError."""
    found = read_fields(message, {1: int, 2: int, 3: int, 4: bytes})
    return ConfChange(_last(found[1]), _last(found[2]), _last(found[3]), _last(found[4], None))


def encode_snapshot(data, conf_state, index, term):
    """raftpb.Snapshot; `conf_state` is a ConfState, `data` the state machine's own bytes."""
    metadata = put_bytes(1, encode_conf_state(conf_state)) + put_uint(2, index) + put_uint(3, term)
    return put_bytes(1, data) + put_bytes(2, metadata)


def decode_snapshot(message):
    """(data, ConfState, index, term). Errors: RaftMessageError."""
    found = read_fields(message, {1: bytes, 2: bytes})
    metadata = read_fields(_last(found[2], b""), {1: bytes, 2: int, 3: int})
    conf_state = decode_conf_state(_last(metadata[1], b""))
    return _last(found[1], b""), conf_state, _last(metadata[2]), _last(metadata[3])
