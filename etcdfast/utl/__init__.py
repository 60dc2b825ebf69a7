"""etcdfastutl: work on etcd's files without a server: snapshots, data directories, databases.

Commands, flags, output and exit codes are etcdutl's where etcdutl has them. One module a command; each returns or
raises UtlError, and only cli.py prints errors and picks exit codes.
"""
