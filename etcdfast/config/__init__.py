"""One table of settings -> flags, ETCD_* environment, help text and the frozen `Config`."""

from etcdfast.config.config import Config

__all__ = ["Config"]
