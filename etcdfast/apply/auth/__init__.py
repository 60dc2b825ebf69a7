"""Users, roles and tokens: who may do what, as the log says it.

store.py      the state and its rules, as a pure function of the log's entries
messages.py   authpb messages and the requests, on bytes: names need not be text
rpcs.py       calls that have to hash or check a password before anything may enter the log
tokens.py     which tokens are valid: simple ones, JWT ones, none at all
helper.py     a process beside apply that does what takes long; passwords.py and signing.py are what it runs

What a request may touch is decided in C (etcdfast/_ext/authtable), by a table that the store keeps up to date.
"""
