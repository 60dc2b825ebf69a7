"""The rare requests and entries of apply, through the Python protobuf runtime.

`ColdPath.call` answers what needs no log; `ColdPath.entry` applies committed entries other than those
of the KV service. The engine (the hot path's state) is reached through its Python face only.
"""

import json
import time

from etcdfast import log
from etcdfast._ext import meters
from etcdfast._ext.wire import WireError
from etcdfast.api import errors, rpcs
from etcdfast.apply import hashing
from etcdfast.apply.alarms import NAMES, Alarms
from etcdfast.apply.auth import messages
from etcdfast.apply.auth.store import FIELDS as AUTH_FIELDS
from etcdfast.apply.membership import Membership
from etcdfast.cluster import entries, membership
from etcdfast.cluster.membership import ADD_LEARNER_NODE, ADD_NODE, REMOVE_NODE, UPDATE_NODE, read_context
from etcdfast.formats.raftpb import decode_conf_change
from etcdfast.version import SERVER_VERSION

DEFAULT_QUOTA_BYTES = 2 * 1024 * 1024 * 1024
ENTRY_NORMAL, ENTRY_CONF_CHANGE = 0, 1


class UnknownEntry(Exception):
    """A committed entry that this release cannot apply: going on would part this member from the others."""


class ColdPath:
    """Handlers by RPC id and by entry kind.

    `engine` as documented in etcdfast/apply/engine; `auth`: etcdfast/apply/auth/rpcs.Auth; `quota_bytes` and
    `learners_max` are what the operator configured.
    """

    def __init__(self, engine, auth, quota_bytes, learners_max=membership.LEARNERS_MAX):
        self.engine = engine
        self.auth = auth
        self.set_quota(quota_bytes)
        self.members = Membership(engine.store, learners_max)
        self.alarms = Alarms(engine.store)
        engine.set_alarms(self.alarms.bits())
        self._calls = {
            _id("Maintenance", "Status"): self._status,
            _id("Maintenance", "Hash"): self._hash,
            _id("Maintenance", "HashKV"): self._hash_kv,
            _id("Maintenance", "Defragment"): self._defragment,
            _id("Cluster", "MemberList"): self._member_list,
            # Carried out by consensus, with the leader's help: here they are only answered.
            _id("Cluster", "MemberPromote"): self._promoted,
            _id("Maintenance", "MoveLeader"): self._leader_moved,
        }
        self._alarm_id = _id("Maintenance", "Alarm")
        self._promote_id = _id("Cluster", "MemberPromote")
        add_id = _id("Cluster", "MemberAdd")
        self._conf_methods = {
            ADD_NODE: add_id,
            ADD_LEARNER_NODE: add_id,
            REMOVE_NODE: _id("Cluster", "MemberRemove"),
            UPDATE_NODE: _id("Cluster", "MemberUpdate"),
        }

    # ---- calls ----

    def set_quota(self, quota_bytes):
        self.quota_bytes = quota_bytes or DEFAULT_QUOTA_BYTES

    def call(self, method, payload):
        """Answer one call: (error id, response bytes), or a generator that yields None per slice and
        returns that pair."""
        handler = self._calls.get(method)
        if handler is None:
            return errors.ID["NOT_CAPABLE"], b""
        return handler(payload)

    def _header(self, response, revision=True):
        engine = self.engine
        header = response.header
        header.cluster_id = engine.cluster_id
        header.member_id = engine.member_id
        header.raft_term = engine.raft_term
        if revision:
            header.revision = engine.current_revision
        return header

    def _status(self, payload):
        engine = self.engine
        out = _pb().StatusResponse()
        self._header(out)
        out.version = SERVER_VERSION
        out.leader = engine.leader
        out.raftIndex = engine.commit_index
        out.raftAppliedIndex = engine.applied_index
        out.raftTerm = engine.raft_term
        out.dbSize = engine.db_bytes
        out.dbSizeInUse = engine.db_in_use_bytes
        out.dbSizeQuota = self.quota_bytes
        out.storageVersion = self.members.storage_version
        out.downgradeInfo.enabled, out.downgradeInfo.targetVersion = self.members.downgrade
        me = self.members.members.get(engine.member_id)
        out.isLearner = bool(me and me.is_learner)
        if not engine.leader:
            out.errors.append(errors.ERRORS[errors.ID["NO_LEADER"]].text)
        for member, alarm in self.alarms.raised():
            # The trailing space is in what etcd prints.
            out.errors.append(f"memberID:{member} alarm:{NAMES.get(alarm, alarm)} ")
        return 0, out.SerializeToString()

    def _member_list(self, payload):
        out = _pb().MemberListResponse()
        self._header(out, revision=False)
        self._list_members(out)
        return 0, out.SerializeToString()

    def _promoted(self, payload):
        out = _pb().MemberPromoteResponse()
        self._header(out, revision=False)
        self._list_members(out)
        return 0, out.SerializeToString()

    def _leader_moved(self, payload):
        return 0, b""  # etcd leaves out even the header

    def _list_members(self, out):
        for member in self.members.ordered():
            out.members.add(
                ID=member.id,
                name=member.name,
                peerURLs=member.peer_urls,
                clientURLs=member.client_urls,
                isLearner=member.is_learner,
            )

    def _defragment(self, payload):
        # RocksDB returns space by compaction in the background; nothing stops for it.
        self.engine.schedule_compaction()
        return 0, b""

    def _hash(self, payload):
        began = time.monotonic_ns()
        crc = yield from hashing.hash_store(self.engine)
        meters.observe("hash", time.monotonic_ns() - began)
        out = _pb().HashResponse(hash=crc)
        self._header(out)
        return 0, out.SerializeToString()

    def member_call(self, method, payload):
        """Answer another member's HashKV: as `call`, the response being the body of an HTTP answer.

        Errors: KeyError for another method."""
        handler = {_id("Maintenance", "HashKV"): self._hash_kv_body}[method]
        return handler(payload)

    def _hash_kv_body(self, payload):
        try:
            status, response = yield from self._hash_kv(payload)
        except ValueError as fault:
            return errors.ID["UNKNOWN"], str(fault).encode()
        if status:
            return status, errors.ERRORS[status].text.removeprefix("etcdserver: ").encode()
        found = _pb().HashKVResponse.FromString(response)
        body = {"header": {"revision": found.header.revision}, "hash": found.hash}
        if found.compact_revision:
            body["compact_revision"] = found.compact_revision
        if found.hash_revision:
            body["hash_revision"] = found.hash_revision
        return 0, json.dumps(body, separators=(",", ":")).encode()

    def _hash_kv(self, payload):
        engine = self.engine
        revision = _pb().HashKVRequest.FromString(payload).revision
        compacted = engine.compacted_revision
        if 0 < revision < compacted:
            return errors.ID["COMPACTED"], b""
        if revision > engine.current_revision:
            return errors.ID["FUTURE_REV"], b""
        revision = revision or engine.current_revision
        out = _pb().HashKVResponse(compact_revision=compacted, hash_revision=revision)
        self._header(out)
        pin = engine.pin(revision)
        began = time.monotonic_ns()
        try:
            out.hash = yield from hashing.hash_kv(engine, revision, compacted)
        finally:
            engine.unpin(pin)
        meters.observe("hash_rev", time.monotonic_ns() - began)
        return 0, out.SerializeToString()

    # ---- the log ----

    def set_members(self, payload, batch):
        """MEMBERS: the membership as consensus has it from log and snapshot. Errors: MembershipError."""
        if self.members.replace(membership.Membership.from_json(payload), batch):
            log.info("took the members from the write-ahead log", members=len(self.members.members))

    def entry(self, index, term, entry_type, data, batch, waited=True):
        """Apply one committed entry that is not the KV service's; writes go into `batch`.

        Returns (RPC id, error id, response bytes or text of the error) for whoever waits (`waited`), or None when
        nobody can.
        Errors: UnknownEntry, MembershipError: the member must stop.
        """
        if entry_type == ENTRY_CONF_CHANGE:
            return self._conf_change(decode_conf_change(data), batch, waited)
        if entry_type != ENTRY_NORMAL:
            raise UnknownEntry(f"entry {index}: type {entry_type}")
        own = entries.read(data)
        if own is not None:
            self.members.carry_out(own, batch)
            return None
        try:
            field, request, head = messages.internal(data)
            if field in AUTH_FIELDS:
                return self._auth(field, request, head, index, batch, waited)
        except WireError as fault:
            raise UnknownEntry(f"entry {index}: {len(data)} bytes that are no request: {fault}") from None
        request = _decode_request(index, data)
        if request.HasField("alarm"):
            return self._alarm_id, 0, self._alarm(request.alarm, batch)
        named = ", ".join(found.name for found, _ in request.ListFields() if found.name != "header")
        raise UnknownEntry(f"entry {index}: request {named or 'without content'}")

    def _auth(self, field, request, head, index, batch, waited):
        method, status, answer = self.auth.store.carry_out(field, request, head, index, batch)
        if not waited:
            return None
        if status:
            return method, status, answer
        return method, 0, messages.with_header(self._header_bytes(), answer)

    def _header_bytes(self):
        holder = _pb().AuthEnableResponse()
        return self._header(holder).SerializeToString()

    def _conf_change(self, change, batch, waited):
        """A refused change leaves everything as it was, and its error goes to whoever proposed it."""
        refused = self.members.apply_change(change, batch)
        if not waited:
            return None  # a start applies many, without the protobuf runtime
        method = self._conf_methods[change.type]
        if change.type == ADD_NODE and read_context(change)[1]:
            method = self._promote_id
        if refused is not None:
            return method, errors.ID[refused], b""
        out = rpcs.message_class(rpcs.BY_ID[method].response)()
        self._header(out, revision=False)
        if change.type in (ADD_NODE, ADD_LEARNER_NODE) and method != self._promote_id:
            member = self.members.members[change.node_id]
            out.member.ID, out.member.isLearner = member.id, member.is_learner
            out.member.peerURLs.extend(member.peer_urls)
        self._list_members(out)
        return method, 0, out.SerializeToString()

    def _alarm(self, request, batch):
        out = _pb().AlarmResponse()
        if request.action == request.GET:
            found = self.alarms.raised(request.alarm)
        else:
            act = {request.ACTIVATE: self.alarms.activate, request.DEACTIVATE: self.alarms.deactivate}
            handler = act.get(request.action)
            pair = handler(request.memberID, request.alarm, batch) if handler else None
            found = [pair] if pair else []
            self.engine.set_alarms(self.alarms.bits())
        for member, alarm in found:
            out.alarms.add(memberID=member, alarm=alarm)
        self._header(out)
        return out.SerializeToString()


def _decode_request(index, data):
    from google.protobuf.message import DecodeError

    from etcdfast.api.pb import raft_internal_pb2

    try:
        return raft_internal_pb2.InternalRaftRequest.FromString(data)
    except DecodeError as fault:
        raise UnknownEntry(f"entry {index}: {len(data)} bytes that are no request") from fault


def _id(service, method):
    return rpcs.BY_PATH[f"/etcdserverpb.{service}/{method}"].id


def _pb():
    # Loaded on first use: start-up of a large member does not wait for the protobuf runtime.
    from etcdfast.api.pb import rpc_pb2

    return rpc_pb2
