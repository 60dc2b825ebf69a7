"""Checks of a configuration as a whole, in etcd's order and words."""

from etcdfast.config.settings import ELECTION_TIMEOUT_MS_MAX, RETIRED, SETTINGS, field_of
from etcdfast.config.values import (
    cluster_map,
    compaction_retention,
    is_ip,
    quote,
    same_addresses,
    split_host_port,
    split_url,
)


class ConfigError(Exception):
    """What a person set cannot be used; the text is one line that says what and how to mend it."""


def _hosts(urls):
    for url in urls:
        scheme, address = split_url(url)
        if scheme not in ("unix", "unixs"):
            yield url, split_host_port(address)[0]


def _check_listen_urls(urls):
    for url, host in _hosts(urls):
        if host != "localhost" and not is_ip(host):
            raise ConfigError(f"expected IP in URL for binding ({url})")


def _check_advertised_urls(name, urls, form):
    for url, host in _hosts(urls):
        if host == "":
            shown = quote(",".join(urls))
            raise ConfigError(f"--{name} {shown} must be {form} (unexpected empty host ({url}))")


def check_values(values_by_field):
    """Each setting by its own row. Raises ConfigError."""
    for setting in SETTINGS:
        if setting.check is None or setting.status == RETIRED:
            continue
        try:
            setting.check(setting, values_by_field[field_of(setting)])
        except ValueError as err:
            raise ConfigError(str(err)) from None


def check_config(config):
    """Settings against each other. Raises ConfigError."""
    _check_listen_urls(config.listen_peer_urls)
    _check_listen_urls(config.listen_client_urls)
    _check_advertised_urls("initial-advertise-peer-urls", config.initial_advertise_peer_urls, '"host:port"')
    _check_advertised_urls(
        "advertise-client-urls",
        config.advertise_client_urls,
        'in the format "host:port", "unix:/path/to/socket" or "unixs:/path/to/socket"',
    )
    heartbeat_ms, election_ms = config.heartbeat_interval, config.election_timeout
    if 5 * heartbeat_ms > election_ms:
        raise ConfigError(
            f"--election-timeout[{election_ms}ms] should be at least as 5 times "
            f"as --heartbeat-interval[{heartbeat_ms}ms]"
        )
    if election_ms > ELECTION_TIMEOUT_MS_MAX:
        raise ConfigError(
            f"--election-timeout[{election_ms}ms] is too long, and should be set less than {ELECTION_TIMEOUT_MS_MAX}ms"
        )
    mode = config.auto_compaction_mode
    if mode not in ("periodic", "revision"):
        raise ConfigError(f"unknown auto-compaction-mode {quote(mode)}" if mode else "undefined auto-compaction-mode")
    try:
        compaction_retention(mode, config.auto_compaction_retention)
    except ValueError as err:
        raise ConfigError(f"error parsing CompactionRetention: {err}") from None
    try:
        cluster_map(config.initial_cluster)
    except ValueError as err:
        raise ConfigError(f"error setting up initial cluster: {err}") from None


def check_bootstrap(config):
    """What must hold for the first start of a member, before it has data. Raises ConfigError."""
    members = dict(config.initial_members)
    if not members:
        raise ConfigError("initial cluster unset and no discovery endpoints found")
    if config.name not in members:
        raise ConfigError(f"couldn't find local name {quote(config.name)} in the initial cluster configuration")
    if config.initial_cluster_state == "new":
        _check_advertised(config, members)
    everyone = [url for urls in members.values() for url in urls]
    if len(everyone) != len(set(everyone)):
        raise ConfigError(f"initial cluster {config.initial_cluster} has duplicate url")


def _check_advertised(config, members):
    listed, advertised = set(members[config.name]), set(config.initial_advertise_peer_urls)
    if same_addresses(listed, advertised):
        return
    advertised_text = ",".join(sorted(advertised))
    if listed - advertised:
        missing = ",".join(f"{config.name}={url}" for url in sorted(listed - advertised))
        raise ConfigError(
            f"--initial-cluster has {missing} but missing from --initial-advertise-peer-urls={advertised_text}"
        )
    if advertised - listed:
        missing = ",".join(sorted(advertised - listed))
        pairs = ",".join(f"{config.name}={url}" for url in sorted(advertised))
        raise ConfigError(f"--initial-advertise-peer-urls has {missing} but missing from --initial-cluster={pairs}")
