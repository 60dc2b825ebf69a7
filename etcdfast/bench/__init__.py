"""etcdfast-bench: load with a report, against any server that speaks etcd's gRPC API.

Reading order: `cli` (flags) -> `workload` (what one request is) -> `runner` (processes, progress)
-> `_ext.loadgen` (the native generator) -> `report` (text and JSON).
"""
