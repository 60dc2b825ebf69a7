"""The consensus process: raft, the write-ahead log, membership.

__main__    start-up and exit statuses
process     the main loop: what the C turn reports, into the raft core, and back
storage     data directory: new member, or replay of an old one
membership  members as raft snapshots carry them;  requests: what a member proposes by itself
snapshots   when the log before an index is let go
raft/       the pure state machine
_ext/consensusloop, _ext/raftlog    the data path, without Python objects
"""
