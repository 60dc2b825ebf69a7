"""Our own version, and the etcd release we speak as.

Clients and members decide by these numbers what they may ask for, so they name the newest etcd
release whose API and formats we serve (3.7), not our own count.
"""

__version__ = "0.1.0"

SERVER_VERSION = "3.7.1"  # StatusResponse.version, /version etcdserver, X-Server-Version
CLUSTER_VERSION = "3.7.0"  # the patch level of a cluster version is always 0
STORAGE_VERSION = "3.7.0"  # StatusResponse.storageVersion
MIN_CLUSTER_VERSION = "3.0.0"  # X-Min-Cluster-Version
