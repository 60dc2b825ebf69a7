"""SIGHUP: which settings may change while the member runs, and what becomes of the others."""

from etcdfast import log
from etcdfast.config.checks import ConfigError
from etcdfast.config.load import Answered, UsageError

# Settings whose new value counts at once. Files that settings name (certificates, keys, revocation lists) are read
# again by whoever uses them, at every SIGHUP, whether their names have changed or not.
RELOADABLE = ("log_level", "quota_backend_bytes")


def read_reloadable(config, read_again):
    """The running `config` with what may change taken from `read_again()`; as it was when that cannot be read."""
    try:
        wanted = read_again()
    except (ConfigError, UsageError, Answered) as err:
        log.error("cannot read the configuration again; it stays as it is", error=err)
        return config
    except Exception as err:  # whatever a file may hold: a member that runs does not end for it
        log.error("cannot read the configuration again; it stays as it is", error=f"{type(err).__name__}: {err}")
        return config
    if wanted.discovery_srv or wanted.discovery_endpoints:  # found at the start, and of no use since
        wanted = wanted._replace(
            initial_cluster=config.initial_cluster, initial_cluster_token=config.initial_cluster_token
        )
    changed = [name for name in config._fields if getattr(config, name) != getattr(wanted, name)]
    taken = {name: getattr(wanted, name) for name in RELOADABLE if name in changed}
    left = [name.replace("_", "-") for name in changed if name not in RELOADABLE]
    if left:
        log.warn("settings have changed that count only from the next start", settings=left)
    log.info("read the configuration again", **taken)
    return config._replace(**taken)
