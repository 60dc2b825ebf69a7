"""The flows of etcd3-py's documentation (a client of the JSON gateway) against one server: one line per result.

Run by test_etcd3_py in a process of its own. Usage: etcd3py_flows.py PORT
"""

from __future__ import annotations

import queue
import sys
import warnings
from collections.abc import Callable

import etcd3
from etcd3.errors.go_etcd_rpctypes_error import Etcd3Exception

WAIT_SECONDS = 20


def show(what: str, result: object) -> None:
    print(f"{what}: {result!r}", flush=True)


def kv_of(kv: object) -> object:
    return kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version  # type: ignore[attr-defined]


def refused(what: str, work: Callable[[], object]) -> None:
    try:
        work()
    except Etcd3Exception as error:
        show(what, (type(error).__name__, error.error, error.code, error.status))
    else:
        show(what, "allowed")


def keys_and_values(client: etcd3.Client) -> None:
    show("put", client.put("foo", "bar").header.revision)
    show("put again", kv_of(client.put("foo", "baz", prev_kv=True).prev_kv))
    show("get", [kv_of(kv) for kv in client.range("foo").kvs])
    show("get nothing", client.range("nothing").kvs)
    for name in ("a", "b", "c"):
        client.put(f"dir/{name}", name)
    show("prefix", [kv.key for kv in client.range("dir/", prefix=True).kvs])
    found = client.range("dir/", prefix=True, limit=2, sort_order="DESCEND", sort_target="KEY")
    show("sorted, limited", ([kv.key for kv in found.kvs], found.more, found.count))
    show("count", client.range(all=True, count_only=True).count)
    show("keys only", [(kv.key, kv.value) for kv in client.range("foo", keys_only=True).kvs])
    show("old revision", [kv.value for kv in client.range("foo", revision=2).kvs])
    show("binary", client.put(b"\x00\xff", b"\xfe\x00").header.revision)
    show("binary back", [kv_of(kv) for kv in client.range(b"\x00\xff").kvs])
    show("delete", client.delete_range("foo", prev_kv=True).deleted)
    show("delete prefix", client.delete_range("dir/", prefix=True).deleted)
    refused("without a key", lambda: client.call_rpc("/kv/range", {}))
    refused("a future revision", lambda: client.range("foo", revision=1000))


def transactions(client: etcd3.Client) -> None:
    client.put("txn", "1")
    for wanted in ("1", "2"):
        txn = client.Txn()
        txn.compare(txn.key("txn").value == wanted)
        txn.compare(txn.key("txn").version > 0)
        txn.success(txn.put("txn", "yes"))
        txn.success(txn.range("txn"))
        txn.failure(txn.range("txn"))
        txn.failure(txn.delete("txn"))
        done = txn.commit()
        show(f"txn {wanted}", (done.succeeded, [type(one).__name__ for one in done.responses]))
    client.compact(client.put("txn", "2").header.revision, True)
    refused("a compacted revision", lambda: client.range("txn", revision=2))


def watches(client: etcd3.Client) -> None:
    events: queue.Queue[object] = queue.Queue()
    watcher = client.Watcher("w/", prefix=True, prev_kv=True, start_revision=client.put("x", "1").header.revision + 1)
    watcher.onEvent(events.put)
    watcher.runDaemon()
    client.put("w/a", "1")
    client.put("other", "not watched")
    client.put("w/a", "2")
    client.delete_range("w/a")
    for _ in range(3):
        event = events.get(timeout=WAIT_SECONDS)
        show("watch", (str(event.type), event.key, event.value, event.prev_kv and event.prev_kv.value))
    watcher.stop()


def leases(client: etcd3.Client) -> None:
    granted = client.lease_grant(30, 7)
    show("grant", (granted.ID, granted.TTL))
    client.put("leased", "1", lease=7)
    left = client.lease_time_to_live(7, keys=True)
    show("time to live", (left.ID, left.grantedTTL, left.keys))
    alive = client.lease_keep_alive_once(7)
    show("keep alive", (alive.ID, alive.TTL))
    show("revoke", client.lease_revoke(7).header.revision)
    show("gone", client.range("leased").kvs)
    refused("revoke of nothing", lambda: client.lease_revoke(12345))
    refused("put with a lease that is none", lambda: client.put("leased", "1", lease=12345))
    with client.Lock("mutex", lock_ttl=20):
        show("lock", "held")


def maintenance(client: etcd3.Client) -> None:
    show("members", [(member.name, len(member.peerURLs)) for member in client.member_list().members])
    show("alarms", client.alarm_get(0, 0).alarms)
    show("leader is known", bool(client.status().leader))
    show("defragment", bool(client.defragment().header))
    show("health", client.health())


def auth(client: etcd3.Client) -> None:
    client.user_add("root", "secret")
    client.role_add("root")
    client.user_grant_role("root", "root")
    client.user_add("ann", "word")
    client.role_add("reader")
    client.role_grant_permission("reader", key="pub/", prefix=True, permType="READ")
    client.user_grant_role("ann", "reader")
    show("role", [(str(one.permType), one.key, one.range_end) for one in client.role_get("reader").perm])
    refused("an existing user", lambda: client.user_add("ann", "x"))
    client.put("pub/x", "1")
    client.auth_enable()
    refused("nobody", lambda: client.range("pub/x"))
    ann = etcd3.Client(port=client.port, username="ann", password="word")
    ann.auth()
    show("ann reads", [kv.value for kv in ann.range("pub/x").kvs])
    refused("ann writes", lambda: ann.put("pub/x", "2"))
    refused("ann reads elsewhere", lambda: ann.range("foo"))
    refused("a wrong password", lambda: etcd3.Client(port=client.port, username="ann", password="no").auth())
    refused("a wrong token", lambda: etcd3.Client(port=client.port, token="nonsense.1").range("pub/x"))
    root = etcd3.Client(port=client.port, username="root", password="secret")
    root.auth()
    show("users", root.user_list().users)
    show("roles", root.role_list().roles)
    root.auth_disable()
    show("auth is off", [kv.value for kv in client.range("pub/x").kvs])
    ann.close()
    root.close()


def main() -> None:
    warnings.simplefilter("ignore")
    client = etcd3.Client(port=int(sys.argv[1]))
    for flow in (keys_and_values, transactions, watches, leases, maintenance, auth):
        print(f"-- {flow.__name__}", flush=True)
        flow(client)
    client.close()
    print("-- end", flush=True)


if __name__ == "__main__":
    main()
