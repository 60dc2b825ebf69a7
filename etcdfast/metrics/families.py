"""The metrics of a member as families of samples: etcd's names, types, labels and buckets, and our own (etcdfast_).

A member is shown as a whole, whichever frontend is asked. Where etcd counts something that does not exist here (B+tree
rebalancing, the store of API v2), the family is there with zeros, so that a query finds it. Source: /metrics of etcd
3.5.1, and the metrics files of etcd's main branch for what came later.
"""

from etcdfast import version
from etcdfast._ext import meters
from etcdfast.api import rpcs
from etcdfast.metrics import processes

CODES = (
    "OK Canceled Unknown InvalidArgument DeadlineExceeded NotFound AlreadyExists PermissionDenied ResourceExhausted "
    "FailedPrecondition Aborted OutOfRange Unimplemented Internal Unavailable DataLoss Unauthenticated"
).split()
TYPES = {rpcs.UNARY: "unary", rpcs.SERVER_STREAM: "server_stream", rpcs.BIDI_STREAM: "bidi_stream"}
# Services that etcd's metrics know; locks and elections are registered with them too, as in etcd from 3.6 on.
MS_BUCKETS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192)
HEALTH_CHECKS = (
    ("livez", "serializable_read"),
    ("readyz", "data_corruption"),
    ("readyz", "serializable_read"),
    ("readyz", "linearizable_read"),
    ("readyz", "non_learner"),
)
# RPCs whose requests etcd's etcd_server_request_duration_seconds tells apart, by its word for them.
REQUESTS = {
    "/etcdserverpb.KV/Range": "Range",
    "/etcdserverpb.KV/Put": "Put",
    "/etcdserverpb.KV/DeleteRange": "DeleteRange",
    "/etcdserverpb.KV/Txn": "Txn",
    "/etcdserverpb.KV/Compact": "Compaction",
    "/etcdserverpb.Lease/LeaseGrant": "LeaseGrant",
    "/etcdserverpb.Lease/LeaseRevoke": "LeaseRevoke",
    "/etcdserverpb.Maintenance/Alarm": "Alarm",
}
QUOTA_DEFAULT_BYTES = 2 << 30
ALARMS = ((1, "NOSPACE"), (2, "CORRUPT"))
_WATCH = "/etcdserverpb.Watch/Watch"
_KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
_V2 = "Of etcd's API v2, which is not served: always 0."
_PROXY = "Of etcd's gRPC proxy, which this is not: always 0."
_TREE = "Of a B+tree on disk, which the store here is not: always 0."


class Family:
    """One metric: `samples` is [(suffix, labels, value)]."""

    __slots__ = ("name", "kind", "help", "samples")

    def __init__(self, name, kind, text, samples=()):
        self.name, self.kind, self.help = name, kind, text
        self.samples = list(samples)

    def add(self, value, suffix="", **labels):
        self.samples.append((suffix, labels, value))
        return self

    def histogram(self, bounds, figures, **labels):
        """`figures` as `Meters.histogram` gives them."""
        counts, total = figures
        seen = 0
        for bound, count in zip((*bounds, None), counts, strict=True):
            seen += count
            self.add(seen, "_bucket", **labels, le="+Inf" if bound is None else go_float(bound))
        self.add(total, "_sum", **labels)
        return self.add(seen, "_count", **labels)


def go_float(value):
    """As Go's %g writes a bucket's bound: 1.048576e+06, 0.001, 512."""
    if value >= 1e21 or value < 1e-4 or (value >= 1e6 and value != int(value)):
        return f"{value:g}"
    if value >= 1e6:
        mantissa = repr(value / 10 ** len(str(int(value // 10))))
        return f"{mantissa.removesuffix('.0')}e+{len(str(int(value))) - 1:02d}"
    return f"{value:.12g}"


def zeros(bounds):
    return [0] * (len(bounds) + 1), 0


def add_up(found):
    """Histograms of several processes, summed."""
    found = list(found)
    return [sum(column) for column in zip(*(counts for counts, _ in found))], sum(total for _, total in found)


def collect(sources, features):
    """Every family there is. features: (name, stage, whether it is on) of etcd's feature gates."""
    consensus, apply = sources.pages()
    blocks = sources.meters
    found = []
    found += server(sources, consensus, apply, features)
    found += disk(blocks)
    found += mvcc(blocks["apply"], apply)
    found += leases_and_auth(blocks["apply"], apply)
    found += network(sources, consensus)
    found += grpc(sources)
    found += other_of_etcd()
    running = sources.processes()
    found += process(running)
    found += own(sources, consensus, apply, running)
    found += scrapes(blocks["supervisor"])
    return sorted(found, key=lambda family: family.name)


def quota_of(apply):
    """As etcd shows it: its default for 0, 0 for a quota that is switched off."""
    quota = apply["quota_bytes"]
    return 0 if quota >> 63 else quota or QUOTA_DEFAULT_BYTES


def one(name, kind, text, value):
    return Family(name, kind, text).add(value)


def total_of(blocks, name):
    return sum(block[name] for block in blocks)


def server(sources, consensus, apply, gates):
    fronts, member = sources.frontends, consensus["member_id"]
    block, applied = sources.meters["consensus"], sources.meters["apply"]
    leads = bool(member) and consensus["leader"] == member
    pending = max(0, consensus["last_index"] - apply["applied_index"])
    found = [
        one("etcd_server_has_leader", "gauge", "1 while a leader is known, else 0.", int(bool(consensus["leader"]))),
        one("etcd_server_is_leader", "gauge", "1 while this member leads, else 0.", int(leads)),
        one("etcd_server_is_learner", "gauge", "1 while this member is a learner, else 0.", int(consensus["learner"])),
        one("etcd_server_leader_changes_seen_total", "counter", "New leaders seen.", consensus["leader_changes"]),
        one(
            "etcd_server_proposals_committed_total",
            "gauge",
            "Index of the last committed entry of the log.",
            consensus["commit_index"],
        ),
        one(
            "etcd_server_proposals_applied_total",
            "gauge",
            "Index of the last entry carried out here.",
            apply["applied_index"],
        ),
        one("etcd_server_proposals_pending", "gauge", "Entries logged and not carried out yet.", pending),
        one(
            "etcd_server_proposals_failed_total",
            "counter",
            "Requests for the log that were refused or got no answer in time.",
            total_of(fronts, "proposals_failed"),
        ),
        one(
            "etcd_server_read_indexes_failed_total",
            "counter",
            "Linearizable reads that were refused or got no answer in time.",
            total_of(fronts, "reads_failed"),
        ),
        one(
            "etcd_server_slow_read_indexes_total",
            "counter",
            "Rounds of ReadIndex that had to be asked again.",
            block["slow_read_indexes"],
        ),
        one(
            "etcd_server_heartbeat_send_failures_total",
            "counter",
            "Heartbeats that this leader sent too late.",
            block["heartbeat_failures"],
        ),
        one(
            "etcd_server_slow_apply_total",
            "counter",
            "Entries that took more than 100 ms to carry out.",
            applied["slow_applies"],
        ),
        one(
            "etcd_server_snapshot_apply_in_progress_total",
            "gauge",
            "1 while a leader's snapshot replaces the state here.",
            block["snapshot_applying"],
        ),
        one(
            "etcd_server_learner_promote_successes",
            "counter",
            "Learners that this leader made voters.",
            block["promote_successes"],
        ),
        one("etcd_server_health_success", "counter", "Good answers of /health.", total_of(fronts, "health_success")),
        one("etcd_server_health_failures", "counter", "Bad answers of /health.", total_of(fronts, "health_failures")),
        one("etcd_server_quota_backend_bytes", "gauge", "Quota of the store.", quota_of(apply)),
        Family("etcd_server_version", "gauge", "1 with the etcd release that this member speaks as.").add(
            1, server_version=version.SERVER_VERSION
        ),
        Family("etcd_server_go_version", "gauge", "1; there is no Go here.").add(1, server_go_version="none"),
        Family("etcd_server_id", "gauge", "1 with this member's id.").add(1, server_id=f"{member:x}"),
    ]
    promoted = Family("etcd_server_learner_promote_failures", "counter", "Promotions that this leader refused.")
    if block["promote_failures"]:
        promoted.add(block["promote_failures"], Reason="refused")
    cluster = Family("etcd_cluster_version", "gauge", "1 with the release that all members of the cluster have.")
    packed = consensus["cluster_version"]
    if packed:
        cluster.add(1, cluster_version=f"{packed >> 32}.{packed >> 16 & 0xFFFF}")
    alarms = Family("etcd_debugging_server_alarms", "gauge", "1 for each alarm raised; of this member's view.")
    for bit, name in ALARMS:
        if apply["alarms"] & bit:
            alarms.add(1, server_id=f"{member:x}", alarm_type=name)
    ops = Family("etcd_server_apply_duration_seconds", "histogram", "Time to carry out an entry, by kind.")
    for i, name in enumerate(meters.OPS):
        for failed in (False, True):
            figures = applied.op(i, failed)
            if any(figures[0]):
                success = "false" if failed else "true"
                ops.histogram(meters.OP_BOUNDS, figures, version="v3", op=name, success=success)
    ranges = Family("etcd_server_range_duration_seconds", "histogram", "Time to read a range.")
    for name, success in (("range_ok", "true"), ("range_failed", "false")):
        figures = applied.histogram(name)
        if any(figures[0]):
            ranges.histogram(meters.BOUNDS[name], figures, success=success)
    clients = Family("etcd_server_client_requests_total", "counter", "Calls by the client version they name.")
    by_version = {}
    for front in fronts:
        for name, pair in front.versions().items():
            before = by_version.get(name, (0, 0))
            by_version[name] = before[0] + pair[0], before[1] + pair[1]
    for name, counts in sorted(by_version.items()):
        for kind, count in zip(("unary", "stream"), counts):
            if count:
                clients.add(count, type=kind, client_api_version=name)
    encryption = Family(
        "etcd_server_client_connections_by_encryption_total", "counter", "Connections of clients with TLS or without."
    )
    over_tls = total_of(fronts, "connections_tls")
    encryption.add(over_tls, encryption="tls")
    encryption.add(max(0, total_of(fronts, "connections_accepted") - over_tls), encryption="plaintext")
    features = Family("etcd_server_feature_enabled", "gauge", "etcd's feature gates, as they are here.")
    for name, stage, on in gates:
        features.add(int(on), name=name, stage=stage)
    requests = Family("etcd_server_request_duration_seconds", "histogram", "Time of requests at the API, by kind.")
    for path, name in REQUESTS.items():
        for failed in (False, True):
            figures = add_up(front.requests(rpcs.BY_PATH[path].id, failed) for front in fronts)
            if any(figures[0]):
                requests.histogram(meters.REQUEST_BOUNDS, figures, type=name, success="false" if failed else "true")
    checks = Family("etcd_server_healthcheck", "gauge", "What each kind of health check said last.")
    checked = Family("etcd_server_healthchecks_total", "counter", "Health checks by their outcome.")
    for kind, name in HEALTH_CHECKS:
        word = f"{kind}_{name}"
        good, bad = total_of(fronts, f"{word}_success"), total_of(fronts, f"{word}_error")
        if good or bad:
            checks.add(int(total_of(fronts, f"{word}_now") > 0), type=kind, name=name)
            checked.add(good, type=kind, name=name, status="success").add(bad, type=kind, name=name, status="error")
    return [*found, promoted, cluster, alarms, ops, ranges, clients, encryption, features, requests, checks, checked]


def of_block(block, rows):
    return [
        Family(name, "histogram", text).histogram(meters.BOUNDS[key], block.histogram(key)) for name, key, text in rows
    ]


def disk(blocks):
    consensus, apply = blocks["consensus"], blocks["apply"]
    found = of_block(
        consensus,
        (
            ("etcd_disk_wal_fsync_duration_seconds", "wal_fsync", "Time of an fdatasync of the write-ahead log."),
            ("etcd_disk_wal_write_duration_seconds", "wal_write", "Time of a write to the write-ahead log."),
            ("etcd_snap_fsync_duration_seconds", "snap_fsync", "Time to sync a .snap file."),
            ("etcd_debugging_snap_save_total_duration_seconds", "snap_save", "Time to save a .snap file."),
            ("etcd_debugging_snap_save_marshalling_duration_seconds", "snap_marshal", "Time to encode a .snap file."),
            ("etcd_snap_db_fsync_duration_seconds", "snap_db_fsync", "Time to sync a database that a leader sent."),
            ("etcd_snap_db_save_total_duration_seconds", "snap_db_save", "Time to save such a database."),
        ),
    )
    found += of_block(
        apply,
        (
            ("etcd_disk_backend_commit_duration_seconds", "backend_commit", "Time to write a batch to the store."),
            ("etcd_disk_backend_snapshot_duration_seconds", "backend_snapshot", "Time to make a snapshot file."),
            ("etcd_disk_backend_defrag_duration_seconds", "backend_defrag", "Time to compact the store's files."),
            ("etcd_debugging_disk_backend_commit_write_duration_seconds", "backend_commit", "As the commit's."),
        ),
    )
    found.append(
        one("etcd_disk_wal_write_bytes_total", "gauge", "Bytes written to the log.", consensus["wal_write_bytes"])
    )
    found.append(
        one("etcd_disk_defrag_inflight", "gauge", "1 while the store's files are compacted.", apply["defrag_inflight"])
    )
    for step in ("rebalance", "spill"):
        name = f"etcd_debugging_disk_backend_commit_{step}_duration_seconds"
        found.append(Family(name, "histogram", _TREE).histogram(MS_BUCKETS, zeros(MS_BUCKETS)))
    return found


def mvcc(block, apply):
    compacted = apply["compacted"]
    found = of_block(
        block,
        (
            ("etcd_mvcc_hash_duration_seconds", "hash", "Time of a Hash of the store."),
            ("etcd_mvcc_hash_rev_duration_seconds", "hash_rev", "Time of a HashKV at a revision."),
            (
                "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds",
                "index_pause",
                "Time that the loop gives to a slice of index compaction.",
            ),
            (
                "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
                "compaction_pause",
                "Time that the loop gives to a slice of compaction.",
            ),
            (
                "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
                "compaction_total",
                "Time of a compaction from its start to its end.",
            ),
        ),
    )
    rows = (
        ("etcd_mvcc_range_total", "counter", "Ranges read here.", block["ranges"]),
        ("etcd_debugging_mvcc_range_total", "counter", "Ranges read here.", block["ranges"]),
        ("etcd_mvcc_put_total", "counter", "Puts carried out here.", block["puts"]),
        ("etcd_mvcc_delete_total", "counter", "Deletes carried out here.", block["deletes"]),
        ("etcd_mvcc_txn_total", "counter", "Transactions of more than one operation.", block["txns"]),
        ("etcd_mvcc_db_total_size_in_bytes", "gauge", "Bytes of the store, in files and memory.", apply["db_bytes"]),
        (
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "gauge",
            "Bytes of what the store would still have after a compaction of its files.",
            apply["db_in_use_bytes"],
        ),
        ("etcd_mvcc_db_open_read_transactions", "gauge", "Reads under way in slices.", block["open_reads"]),
        ("etcd_debugging_mvcc_keys_total", "gauge", "Live keys.", apply["keys"]),
        ("etcd_debugging_mvcc_watch_stream_total", "gauge", "Streams of watches.", apply["watch_streams"]),
        ("etcd_debugging_mvcc_watcher_total", "gauge", "Watches.", apply["watchers"]),
        ("etcd_debugging_mvcc_slow_watcher_total", "gauge", "Watches behind what happened.", apply["slow_watchers"]),
        ("etcd_debugging_mvcc_events_total", "counter", "Events sent.", apply["watch_events"]),
        ("etcd_debugging_mvcc_pending_events_total", "gauge", "Events that wait.", block["pending_events"]),
        ("etcd_debugging_mvcc_current_revision", "gauge", "Revision of the store.", apply["revision"]),
        (
            "etcd_debugging_mvcc_compact_revision",
            "gauge",
            "Revision of the last compaction, -1 for none.",
            compacted - (1 << 64) if compacted >> 63 else compacted,
        ),
        ("etcd_debugging_mvcc_total_put_size_in_bytes", "gauge", "Bytes of keys and values put.", block["put_bytes"]),
        (
            "etcd_debugging_mvcc_db_compaction_last",
            "gauge",
            "Unix time of the last compaction, 0 since the start for none.",
            block["compaction_last"],
        ),
        (
            "etcd_debugging_mvcc_db_compaction_keys_total",
            "counter",
            "Revisions that compactions dropped.",
            block["compaction_keys"],
        ),
    )
    return found + [one(*row) for row in rows]


def leases_and_auth(block, apply):
    return [
        one("etcd_debugging_lease_granted_total", "counter", "Leases granted.", apply["leases_granted"]),
        one("etcd_debugging_lease_revoked_total", "counter", "Leases revoked.", apply["leases_revoked"]),
        one("etcd_debugging_lease_renewed_total", "counter", "Leases renewed by this leader.", apply["leases_renewed"]),
        one("etcd_debugging_server_lease_expired_total", "counter", "Leases that ended.", apply["leases_expired"]),
        *of_block(block, (("etcd_debugging_lease_ttl_total", "lease_ttl", "TTL of granted leases, in seconds."),)),
        # etcd's revision of users and roles begins at 1.
        one("etcd_debugging_auth_revision", "gauge", "Revision of users and roles.", max(1, apply["auth_revision"])),
    ]


def network(sources, consensus):
    fronts = sources.frontends
    own_id = f"{consensus['member_id']:x}"
    rows = {
        "etcd_network_known_peers": ("gauge", "1 for each other member."),
        "etcd_network_active_peers": ("gauge", "1 for each other member that is heard."),
        "etcd_network_disconnected_peers_total": ("counter", "How often another member was not heard any more."),
        "etcd_network_peer_sent_bytes_total": ("counter", "Bytes sent to other members."),
        "etcd_network_peer_received_bytes_total": ("counter", "Bytes received from other members."),
        "etcd_network_peer_sent_failures_total": ("counter", "Messages that did not reach their member."),
        "etcd_network_peer_received_failures_total": ("counter", "Streams of other members that broke."),
        "etcd_network_peer_round_trip_time_seconds": ("histogram", "Time of a probe to another member and back."),
        "etcd_network_snapshot_send_success": ("counter", "Snapshots that reached their member."),
        "etcd_network_snapshot_send_inflights_total": ("gauge", "Snapshots on their way to a member."),
        "etcd_network_snapshot_send_failures": ("counter", "Snapshots that did not reach their member."),
        "etcd_network_snapshot_send_total_duration_seconds": ("histogram", "Time to send a snapshot."),
        "etcd_network_snapshot_receive_success": ("counter", "Snapshots received."),
        "etcd_network_snapshot_receive_inflights_total": ("gauge", "Snapshots on their way here."),
        "etcd_network_snapshot_receive_failures": ("counter", "Snapshots that ended before they were here."),
        "etcd_network_snapshot_receive_total_duration_seconds": ("histogram", "Time to receive a snapshot."),
    }
    found = {name: Family(name, *row) for name, row in rows.items()}
    for member, (words, histograms) in sources.meters["consensus"].peers().items():
        remote = f"{member:x}"

        def show(name, word, always=False, words=words, **labels):
            if always or words[word]:
                found[f"etcd_network_{name}"].add(words[word], **labels)

        if not words["gone"]:
            found["etcd_network_known_peers"].add(1, Local=own_id, Remote=remote)
            show("active_peers", "active", True, Local=own_id, Remote=remote)
        show("disconnected_peers_total", "disconnected", Local=own_id, Remote=remote)
        show("peer_sent_bytes_total", "sent_bytes", True, To=remote)
        show("peer_received_bytes_total", "received_bytes", True, From=remote)
        show("peer_sent_failures_total", "sent_failures", True, To=remote)
        show("peer_received_failures_total", "received_failures", True, From=remote)
        show("snapshot_send_success", "snapshot_sent", To=remote)
        show("snapshot_send_failures", "snapshot_send_failures", To=remote)
        show("snapshot_receive_success", "snapshot_received", From=remote)
        show("snapshot_receive_failures", "snapshot_receive_failures", From=remote)
        for kind, label in (("send", "To"), ("receive", "From")):
            if any(histograms[f"snapshot_{kind}"][0]):
                word = "snapshot_sending" if kind == "send" else "snapshot_receiving"
                show(f"snapshot_{kind}_inflights_total", word, True, **{label: remote})
                found[f"etcd_network_snapshot_{kind}_total_duration_seconds"].histogram(
                    meters.PEER_BOUNDS[f"snapshot_{kind}"], histograms[f"snapshot_{kind}"], **{label: remote}
                )
        found["etcd_network_peer_round_trip_time_seconds"].histogram(
            meters.PEER_BOUNDS["round_trip"], histograms["round_trip"], To=remote
        )
    # etcd counts streams that end for another reason than their client's going. Here that ends them with a code.
    failures = Family("etcd_network_server_stream_failures_total", "counter", "Streams ended by an internal error.")
    calls = [front.calls()[3] for front in fronts]
    for path, api in ((_WATCH, "watch"), (_KEEP_ALIVE, "lease-keepalive")):
        failed = sum(handled[rpcs.BY_PATH[path].id][CODES.index("Internal")] for handled in calls)
        if failed:
            failures.add(failed, Type="receive", API=api)
    return [
        *found.values(),
        failures,
        one(
            "etcd_network_client_grpc_received_bytes_total",
            "counter",
            "Bytes of messages received from clients.",
            total_of(fronts, "client_received_bytes"),
        ),
        one(
            "etcd_network_client_grpc_sent_bytes_total",
            "counter",
            "Bytes of messages sent to clients.",
            total_of(fronts, "client_sent_bytes"),
        ),
    ]


def grpc(sources):
    fronts = sources.frontends
    per_front = [front.calls() for front in fronts]
    started = Family("grpc_server_started_total", "counter", "Calls begun.")
    received = Family("grpc_server_msg_received_total", "counter", "Messages of clients.")
    sent = Family("grpc_server_msg_sent_total", "counter", "Messages sent to clients.")
    handled = Family("grpc_server_handled_total", "counter", "Calls ended, by their status.")
    seconds = Family("grpc_server_handling_seconds", "histogram", "Time from a call's headers to its status.")
    extensive = sources.config.metrics == "extensive"
    for rpc in rpcs.RPCS:
        labels = {"grpc_method": rpc.method, "grpc_service": rpc.service, "grpc_type": TYPES[rpc.kind]}
        for family, column in ((started, 0), (received, 1), (sent, 2)):
            family.add(sum(calls[column][rpc.id] for calls in per_front), **labels)
        for code, name in enumerate(CODES):
            handled.add(sum(calls[3][rpc.id][code] for calls in per_front), grpc_code=name, **labels)
        if extensive:
            figures = add_up(front.handling(rpc.id) for front in fronts)
            seconds.histogram(meters.HANDLING_BOUNDS, figures, **labels)
    found = [started, received, sent, handled]
    return [*found, seconds] if extensive else found


def other_of_etcd():
    """What has no counterpart here, for queries that name it."""
    found = [
        one(f"etcd_grpc_proxy_{name}_total", kind, _PROXY, 0)
        for name, kind in (
            ("cache_hits", "gauge"),
            ("cache_keys", "gauge"),
            ("cache_misses", "gauge"),
            ("events_coalescing", "counter"),
            ("watchers_coalescing", "gauge"),
        )
    ]
    found += [
        one("etcd_debugging_store_expires_total", "counter", _V2, 0),
        one("etcd_debugging_store_watch_requests_total", "counter", _V2, 0),
        one("etcd_debugging_store_watchers", "gauge", _V2, 0),
    ]
    for name, action in (("reads_total", "getRecursive"), ("writes_total", "create"), ("writes_total", "set")):
        name = f"etcd_debugging_store_{name}"
        if found[-1].name == name:
            found[-1].add(0, action=action)
        else:
            found.append(Family(name, "counter", _V2).add(0, action=action))
    text = "Of etcd's loop of a watch stream, which does not exist here: events go to all watchers at once. Always 0."
    for name in ("watch_stream", "watch_stream_duration_per_event", "control_stream", "progress"):
        name = name if "duration" in name else f"{name}_duration"
        name = f"etcd_debugging_server_watch_send_loop_{name}_seconds"
        found.append(Family(name, "histogram", text).histogram(MS_BUCKETS, zeros(MS_BUCKETS)))
    return found


def process(running):
    if not running:
        return []
    whole = processes.member(list(running.values()))
    rows = (
        ("process_cpu_seconds_total", "counter", "CPU time of the member's processes.", whole.cpu_seconds),
        (
            "process_resident_memory_bytes",
            "gauge",
            "Memory of the member's processes: what each has alone, and shared pages once.",
            whole.resident_bytes,
        ),
        ("process_virtual_memory_bytes", "gauge", "Address space of the member's processes.", whole.virtual_bytes),
        ("process_virtual_memory_max_bytes", "gauge", "Largest address space there may be.", whole.virtual_max),
        ("process_open_fds", "gauge", "Open descriptors of the member's processes.", whole.open_fds),
        ("process_max_fds", "gauge", "How many they may have, all together.", whole.max_fds),
        ("process_start_time_seconds", "gauge", "Unix time of the member's start.", whole.start),
        ("os_fd_used", "gauge", "Open descriptors of the process that is nearest to its limit.", whole.nearest_open),
        ("os_fd_limit", "gauge", "The limit of that process.", whole.nearest_max),
        # Dashboards for any Go program count threads by this name.
        ("go_threads", "gauge", "Threads of the member's processes.", whole.threads),
    )
    return [one(*row) for row in rows]


def own(sources, consensus, apply, running):
    """What only this server has."""
    fronts = sources.frontends
    blocks = sources.meters
    stages = Family(
        "etcdfast_stage_duration_seconds",
        "histogram",
        "Time in a stage: frontend is a whole call, consensus a batch from disk to hand-over, wal a batch's write and "
        "sync, apply a turn with entries.",
    )
    stages.histogram(
        meters.BOUNDS["stage_frontend"], add_up(f.histogram("stage_frontend") for f in fronts), stage="frontend"
    )
    for stage, name in (("consensus", "consensus"), ("wal", "consensus"), ("apply", "apply")):
        key = f"stage_{stage}"
        stages.histogram(meters.BOUNDS[key], blocks[name].histogram(key), stage=stage)
    used = Family("etcdfast_ring_used_bytes", "gauge", "Bytes in a ring, not taken yet.")
    room = Family("etcdfast_ring_capacity_bytes", "gauge", "Bytes that a ring takes.")
    for name, (in_use, capacity) in sorted(sources.rings().items()):
        used.add(in_use, ring=name)
        room.add(capacity, ring=name)
    cpu = Family("etcdfast_process_cpu_seconds_total", "counter", "CPU time of each process since its start.")
    memory = Family("etcdfast_process_resident_memory_bytes", "gauge", "Memory of each process, shared pages included.")
    fds = Family("etcdfast_process_open_fds", "gauge", "Open descriptors of each process.")
    for name, p in running.items():
        cpu.add(p.cpu_seconds, process=name)
        memory.add(p.anon_bytes + p.file_bytes + p.shared_bytes, process=name)
        fds.add(p.open_fds, process=name)
    goaways = Family("etcdfast_connections_ended_total", "counter", "Connections ended for a rule they broke.")
    for code, count in enumerate(map(sum, zip(*(front.goaways() for front in fronts)))):
        if count:
            goaways.add(count, code=str(code))
    lag = max(0, consensus["commit_index"] - apply["applied_index"])
    rows = (
        ("etcdfast_apply_lag_entries", "gauge", "Entries committed and not carried out yet.", lag),
        ("etcdfast_log_durable_index", "gauge", "Last entry on the own disk.", consensus["durable_index"]),
        ("etcdfast_store_flushed_index", "gauge", "Last entry in the store's files.", apply["flushed_index"]),
        ("etcdfast_index_bytes", "gauge", "Memory of the revision index.", apply["index_bytes"]),
        ("etcdfast_leases", "gauge", "Leases there are.", apply["leases"]),
        ("etcdfast_client_connections", "gauge", "Connections of clients.", total_of(fronts, "connections")),
        ("etcdfast_client_connections_max", "gauge", "How many there may be.", total_of(fronts, "connections_max")),
        (
            "etcdfast_client_connections_accepted_total",
            "counter",
            "Connections accepted.",
            total_of(fronts, "connections_accepted"),
        ),
        (
            "etcdfast_accept_failures_total",
            "counter",
            "Times that a connection could not be accepted for want of descriptors or memory.",
            total_of(fronts, "accepts_failed"),
        ),
        (
            "etcdfast_connection_limit_reached_total",
            "counter",
            "Times that connections had to wait because there were as many as may be.",
            total_of(fronts, "connections_full"),
        ),
        ("etcdfast_client_held_bytes", "gauge", "Memory held for connections.", total_of(fronts, "held_bytes")),
        (
            "etcdfast_requests_waiting",
            "gauge",
            "Requests that wait for room in a ring.",
            total_of(fronts, "requests_waiting"),
        ),
        ("etcdfast_ring_full_total", "counter", "Requests that found a ring full.", total_of(fronts, "ring_full")),
        (
            "etcdfast_proposals_forwarded_total",
            "counter",
            "Requests that went to the leader.",
            consensus["proposals_forwarded"],
        ),
        (
            "etcdfast_restarts_total",
            "counter",
            "Times that the processes started anew on a leader's snapshot.",
            blocks["supervisor"]["restarts"],
        ),
    )
    return [
        stages,
        used,
        room,
        cpu,
        memory,
        fds,
        goaways,
        *of_block(
            blocks["consensus"],
            (
                ("etcdfast_wal_sync_entries", "fsync_entries", "Entries that one sync made durable."),
                ("etcdfast_wal_sync_bytes", "fsync_bytes", "Bytes that one sync made durable."),
            ),
        ),
        *(one(*row) for row in rows),
        Family("etcdfast_build_info", "gauge", "1 with this program's version.").add(1, version=version.__version__),
    ]


def scrapes(block):
    total = Family("promhttp_metric_handler_requests_total", "counter", "Scrapes by HTTP status.")
    for code, name in (("200", "scrapes_ok"), ("500", "scrapes_failed"), ("503", "scrapes_busy")):
        total.add(block[name], code=code)
    return [
        total,
        one(
            "promhttp_metric_handler_requests_in_flight",
            "gauge",
            "Scrapes being answered.",
            max(1, block["scrapes_running"]),
        ),
    ]
