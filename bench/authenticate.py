"""Clients that authenticate as fast as they can until a line comes on standard input; then how many did, as JSON."""

from __future__ import annotations

import json
import sys
import threading
import time

import _path  # noqa: F401
import grpc

from etcdfast.api.grpc_stubs import Client
from etcdfast.api.rpcs import message_class

CLIENTS = 16
CALL_SECONDS = 10.0


def main(endpoint: str, name: str, password: str) -> None:
    request = message_class("etcdserverpb.AuthenticateRequest")(name=name, password=password)
    counts = {"done": 0, "failed": 0}
    stop = threading.Event()

    def work(client: Client) -> None:
        while not stop.is_set():
            try:
                client.Auth.Authenticate(request, timeout=CALL_SECONDS)
                counts["done"] += 1
            except grpc.RpcError:
                counts["failed"] += 1
                stop.wait(0.01)

    with grpc.insecure_channel(endpoint) as channel:
        client = Client(channel)
        threads = [threading.Thread(target=work, args=(client,), daemon=True) for _ in range(CLIENTS)]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        print("begun", flush=True)
        sys.stdin.readline()
        took = time.monotonic() - started
        stop.set()
        for thread in threads:
            thread.join(CALL_SECONDS)
    print(json.dumps({"per_second": counts["done"] / took, "failed": counts["failed"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
