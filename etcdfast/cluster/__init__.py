"""What a cluster agrees on, as pure rules: members, versions, entries of etcd's own, corruption checks.

Consensus and apply follow the same log in two processes. Each keeps its own copy of the membership; the rules by
which an entry changes it are here once, so that the copies cannot part.
"""
