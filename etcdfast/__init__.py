"""etcdfast: etcd's API, tools and formats on a multi-process server with Cython hot paths."""

from etcdfast.version import __version__

__all__ = ["__version__"]
