"""The command `etcdfast`: settings in, one member up, exit status out."""

import os
import signal
import sys

from etcdfast import log, version


def _start(config, read_again):
    """Bring the member up and watch it until it ends; the signal that stopped it, None when it was removed."""
    from etcdfast._ext import proc
    from etcdfast.config.checks import NO_FILES, check_bootstrap
    from etcdfast.metrics.service import raise_descriptor_limit
    from etcdfast.supervisor import oldlogs
    from etcdfast.supervisor.clienttls import check_client_tls
    from etcdfast.supervisor.datadir import is_new_member, open_data_dir
    from etcdfast.supervisor.listeners import client_urls, open_listeners
    from etcdfast.supervisor.member import Member
    from etcdfast.supervisor.peertls import check_peer_tls

    proc.set_name("etcdfast")
    log.info(
        "starting etcdfast",
        etcdfast_version=version.__version__,
        etcd_version=version.SERVER_VERSION,
        name=config.name,
        data_dir=config.data_dir,
        initial_advertise_peer_urls=config.initial_advertise_peer_urls,
        listen_peer_urls=config.listen_peer_urls,
        listen_client_urls=config.listen_client_urls,
        advertise_client_urls=config.advertise_client_urls,
        frontends=config.frontend_count,
    )
    raise_descriptor_limit()
    lock_fd = open_data_dir(config)
    try:
        if is_new_member(config):
            if config.discovery_srv:
                from etcdfast.supervisor.srv import find_cluster

                config = config._replace(initial_cluster=find_cluster(config))
            elif config.discovery_endpoints:
                from etcdfast.supervisor import discovery

                found = discovery.find_cluster(config)
                config = config._replace(initial_cluster=found, initial_cluster_token=config.discovery_token)
            check_bootstrap(config)
        check_client_tls(config)
        check_peer_tls(config)
        shared = config.socket_reuse_port
        (peer_listeners,) = open_listeners([(url, "peer") for url in config.listen_peer_urls], 1, shared)
        listeners = open_listeners(client_urls(config), config.frontend_count, shared)
        for url, _, role in listeners[0]:
            if role != "metrics" and url.startswith(("http:", "unix:")):
                log.info("serving client traffic insecurely; this is strongly discouraged!", address=url)
        if config.log_rotation:
            (path,) = (output for output in config.log_outputs if output not in NO_FILES)
            oldlogs.start(path, config.log_rotation)
        return Member(config, peer_listeners, listeners, lock_fd, read_again).run()
    finally:
        os.close(lock_fd)


def main(arguments=None):
    """Run one member. Returns an exit status, or ends by the signal that stopped the member, as etcd does.

    Exit statuses: 0 help and version, and a member that was removed from its cluster; 1 settings, data directory,
    listeners; 2 a wrong flag; 128 + signal after SIGTERM or SIGINT (0 as process 1); else that of the process that
    failed.
    """
    from etcdfast.config.checks import ConfigError
    from etcdfast.config.load import Answered, UsageError, load
    from etcdfast.supervisor.errors import StartError

    # Until there is a member to stop in order, a signal just ends the program, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # for a member it means to read its files again
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        config = load(arguments, os.environ, log)
        log.configure(config.log_level, config.log_outputs, config.log_format, config.log_rotation)
    except Answered as answer:
        sys.stdout.write(str(answer))
        return 0
    except UsageError as err:
        from etcdfast.config.helptext import USAGE

        sys.stderr.write(f"{err}\n{USAGE}")
        return 2
    except (ConfigError, log.LogError) as err:
        log.fatal("failed to verify flags", error=err)
        return 1
    try:
        stopped_by = _start(config, lambda: load(arguments, os.environ, log.Quiet))
    except ConfigError as err:
        log.fatal("failed to verify flags", error=err)
        return 1
    except StartError as err:
        log.fatal("etcdfast stopped", error=err, **err.fields)
        return err.status
    if stopped_by is None or os.getpid() == 1:
        return 0
    signal.signal(stopped_by, signal.SIG_DFL)
    os.kill(os.getpid(), stopped_by)
    return 128 + stopped_by


if __name__ == "__main__":
    sys.exit(main())
