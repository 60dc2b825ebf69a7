"""/debug/vars: the shape of Go's expvar page, with the figures that exist here."""

import sys

from etcdfast.metrics import processes


def collect(sources):
    consensus, apply = sources.pages()
    running = sources.processes()
    whole = processes.member(list(running.values()))
    member = consensus["member_id"]
    state = "StateLeader" if consensus["leader"] == member else "StateFollower"
    if consensus["learner"]:
        state = "StateLearner"
    return {
        "cmdline": list(sys.orig_argv),
        "file_descriptor_limit": int(min(whole.nearest_max, 2**63 - 1)),
        # Of Go's many figures the two that others read.
        "memstats": {"Sys": whole.resident_bytes, "HeapInuse": sum(p.anon_bytes for p in running.values())},
        "raft.status": {
            "id": f"{member:x}",
            "term": consensus["term"],
            "commit": consensus["commit_index"],
            "lead": f"{consensus['leader']:x}",
            "raftState": state if consensus["leader"] else "StateCandidate",
            "applied": apply["applied_index"],
        },
        "etcdfast": {
            "processes": {
                name: {
                    "pid": sources.pids.get(name),
                    "cpu_seconds": round(p.cpu_seconds, 2),
                    "anonymous_bytes": p.anon_bytes,
                    "file_bytes": p.file_bytes,
                    "shared_bytes": p.shared_bytes,
                    "threads": p.threads,
                    "open_fds": p.open_fds,
                }
                for name, p in running.items()
            },
            "rings": {name: {"used": used, "capacity": room} for name, (used, room) in sources.rings().items()},
            "consensus": consensus,
            "apply": {**apply, "compacted": apply["compacted"] - (apply["compacted"] >> 63 << 64)},
        },
    }
