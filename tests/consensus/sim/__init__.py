"""A cluster of raft cores in one process, under a seeded clock, network and disk.

world      time, clients, faults, and what a run consists of;  python -m tests.consensus.sim.replay SEED repeats one
member     one member: the core, and what a process does around it
disk       records written in order, durable up to a point, cut off there by a crash
network    delay, loss, duplicates, other orders, links cut one way or both
entries    the log in memory, batches of entries, and who is a member
checker    what must hold at every step
mutants    cores with a planted fault: the checker must find each
"""
