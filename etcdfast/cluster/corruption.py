"""Whether members that applied the same log hold the same data: hashes compared as etcd compares them.

The checks are generators that decide and do nothing else. They yield what they need and go on with it:

    Own(revision, linearizable)   -> this member's Answer for that revision (0: the newest), or None. Ask apply
                                     (PEER of HASH_KV); `linearizable`: behind a ReadIndex taken after the last step
    Peers(revision)               -> {member id: Answer or None} of all other members (POST /members/hashkv)

and return what is to be done about it. Who runs them says when: `periodic` on the leader every
--corrupt-check-time, `compacted` on the leader every --compact-hash-check-time when the store has been compacted since,
`initial` once at the start of a member that has data, before it serves.

    check = corruption.periodic(own_id)
    wanted = next(check)
    ... ask, then: wanted = check.send(answer)
    ... StopIteration.value: ids of members to raise CORRUPT for, by `alarm_entry` (or as an AlarmRequest)

Source: reference/formats.md section 9.5; etcd's periodic, compact-hash and initial checks.
"""

import json
from collections import namedtuple

from etcdfast.formats.raftpb import put_bytes, put_uint

CORRUPT = 2  # AlarmType
WHOLE_CLUSTER = 0  # the member id of an alarm when no quorum agrees on what is right

Own = namedtuple("Own", "revision linearizable", defaults=(False,))
Peers = namedtuple("Peers", "revision")
# revision: the newest that the member had; hash_revision: that of the hash, 0 from members before 3.6.
Answer = namedtuple("Answer", "revision hash compact_revision hash_revision")


class AnswerError(Exception):
    """The body of an answer to /members/hashkv that cannot be read."""


def read_answer(body):
    """Errors: AnswerError."""
    try:
        found = json.loads(body)
        header = found.get("header") or {}
        numbers = (
            header.get("revision", 0),
            found.get("hash", 0),
            found.get("compact_revision", 0),
            found.get("hash_revision", 0),
        )
        return Answer(*(int(number) for number in numbers))
    except (ValueError, TypeError, AttributeError) as err:
        raise AnswerError(f"hash of a member cannot be read: {err!r}") from None


def question(revision):
    """The body of a POST to /members/hashkv."""
    return b'{"revision":%d}' % revision


def alarm_request(member_id):
    """An AlarmRequest that raises CORRUPT for a member."""
    return put_uint(1, 1) + (put_uint(2, member_id) if member_id else b"") + put_uint(3, CORRUPT)


def alarm_entry(request_id, member_id):
    """The entry of it: an InternalRaftRequest."""
    return put_bytes(10, alarm_request(member_id)) + put_bytes(100, put_uint(1, request_id))


def periodic(own_id):
    """The leader's check of everybody, itself included, at its newest revision."""
    before = yield Own(0)
    if before is None:
        return []
    answers = yield Peers(before.hash_revision)
    # What others had applied when they answered, this member has applied now.
    after = yield Own(0, True)
    if after is None:
        return []
    return judge_periodic(own_id, before, after, answers)


def judge_periodic(own_id, before, after, answers):
    """Members that cannot be right; of this member's two hashes and the others' at the revision of the first."""
    if _comparable(before, after) and before.hash != after.hash:
        return [own_id]  # not even with itself does it agree: its word about others counts for nothing
    wrong = []
    for member_id, answer in sorted(answers.items()):
        if answer is None:
            continue
        ahead = answer.revision > after.revision or answer.compact_revision > after.compact_revision
        if ahead or _comparable(before, answer) and answer.hash != before.hash:
            wrong.append(member_id)
    return wrong


def compacted(own_id, revision):
    """The leader's check at the revision of the last compaction, at which all members can still tell their hash.

    Returns (ids, complete): whether every member's hash was compared. While it is not, the check is worth repeating.
    """
    own = yield Own(revision)
    if own is None:
        return [], False
    answers = yield Peers(revision)
    return judge_compacted(own_id, own, answers)


def judge_compacted(own_id, own, answers):
    by_hash = {own.hash: [own_id]}
    compared = 0
    for member_id, answer in sorted(answers.items()):
        if answer is not None and _comparable(own, answer):
            compared += 1
            by_hash.setdefault(answer.hash, []).append(member_id)
    complete = compared == len(answers)
    if len(by_hash) == 1:
        return [], complete
    quorum = (len(answers) + 1) // 2 + 1
    right = next((found for found, members in by_hash.items() if len(members) >= quorum), None)
    if right is None:
        return [WHOLE_CLUSTER], True
    return sorted(member for found, members in by_hash.items() if found != right for member in members), True


def initial(own_id):
    """A member's check of itself before it serves: ids of the members it differs from.

    With any in it the member must not start: it may be the one that is wrong. As in etcd, members that cannot be
    compared (unreachable, compacted further, not so far yet) do not keep it from starting.
    """
    own = yield Own(0)
    if own is None:
        return []
    answers = yield Peers(own.hash_revision)
    return sorted(m for m, answer in answers.items() if answer and _comparable(own, answer) and answer.hash != own.hash)


def _comparable(one, other):
    """Whether two hashes must be equal: same revision, same compacted revision.

    A member before 3.6 does not say which revision it hashed, and 3.4 and 3.5 have changed since what a compaction
    leaves in the hash: what such a member says proves nothing.
    """
    return one.hash_revision == other.hash_revision and one.compact_revision == other.compact_revision
