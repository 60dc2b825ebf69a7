from etcdfast._ext.watchcore import WatchCore

class WatchHub(WatchCore):
    """Contract for Cython callers in watchhub.pxd; no methods for Python."""
