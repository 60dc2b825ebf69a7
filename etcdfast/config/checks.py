"""Checks of a configuration as a whole, in etcd's order and words."""

from etcdfast.config.kinds import RENAMED, RETIRED
from etcdfast.config.settings import ELECTION_TIMEOUT_MS_MAX, SETTINGS, field_of
from etcdfast.config.values import (
    cluster_map,
    compaction_retention,
    is_ip,
    log_rotation,
    quote,
    same_addresses,
    split_host_port,
    split_url,
)

JOURNAL = "systemd/journal"
NO_FILES = ("default", "stderr", "stdout", JOURNAL)


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
        if setting.check is None or setting.status in (RETIRED, RENAMED):
            continue
        try:
            setting.check(setting, values_by_field[field_of(setting)])
        except ValueError as err:
            raise ConfigError(str(err)) from None


def _check_logging(config):
    outputs = config.log_outputs
    if len(outputs) > 1 and "default" in outputs:
        raise ConfigError('multi logoutput for "default" is not supported yet')
    if len(outputs) > 1 and JOURNAL in outputs:
        shown = " ".join(map(quote, outputs))
        raise ConfigError(f"running with {JOURNAL} but other '--log-outputs' values ([{shown}]) are configured")
    if config.enable_log_rotation:
        if sum(output not in NO_FILES for output in outputs) != 1:
            raise ConfigError("--log-outputs requires a single file path when --log-rotate-config-json is defined")
        try:
            log_rotation(config.log_rotation_config_json)
        except ValueError as err:
            raise ConfigError(str(err)) from None


def is_tls(url):
    return split_url(url)[0] in ("https", "unixs")


def _check_tls(config):
    client_urls = (*config.listen_client_urls, *config.listen_client_http_urls, *config.listen_metrics_urls)
    for url in filter(is_tls, client_urls):
        if not (config.cert_file or config.key_file or config.auto_tls):
            raise ConfigError(
                f"TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
            )
        _check_pair(config.cert_file, config.key_file, config.client_cert_file, config.client_key_file)
    for url in filter(is_tls, config.listen_peer_urls):
        if not (config.peer_cert_file or config.peer_key_file or config.peer_auto_tls):
            raise ConfigError(
                f"cannot listen on TLS for {split_url(url)[1]}: KeyFile and CertFile are not presented "
                "(--peer-cert-file, --peer-key-file)"
            )
        _check_pair(
            config.peer_cert_file, config.peer_key_file, config.peer_client_cert_file, config.peer_client_key_file
        )
    for names, hosts in (
        (config.client_cert_allowed_cn, config.client_cert_allowed_hostname),
        (config.peer_cert_allowed_cn, config.peer_cert_allowed_hostname),
    ):
        if names and hosts:
            raise ConfigError(
                f"AllowedCNs and AllowedHostnames are mutually exclusive (cns={','.join(names)}, "
                f"hostnames={','.join(hosts)})"
            )
    if (config.auto_tls or config.peer_auto_tls) and not config.self_signed_cert_validity:
        raise ConfigError("selfSignedCertValidity is invalid,it should be greater than 0")
    oldest, newest = config.tls_min_version, config.tls_max_version
    if newest and oldest > newest:
        raise ConfigError(f"min version ({oldest}) is greater than max version ({newest})")
    if oldest == "TLS1.3" and config.cipher_suites:
        raise ConfigError("cipher suites cannot be configured when only TLS1.3 is enabled")


def _check_pair(cert, key, client_cert, client_key):
    if bool(cert) != bool(key):
        raise ConfigError(f"KeyFile and CertFile must both be present[key: {key}, cert: {cert}]")
    if bool(client_cert) != bool(client_key):
        raise ConfigError(
            f"ClientKeyFile and ClientCertFile must both be present or both absent: key: {client_key}, "
            f"cert: {client_cert}]"
        )


def check_config(config):
    """Settings against each other. Raises ConfigError."""
    _check_logging(config)
    _check_listen_urls(config.listen_peer_urls)
    _check_listen_urls(config.listen_client_urls)
    _check_listen_urls(config.listen_client_http_urls)
    _check_listen_urls(config.listen_metrics_urls)
    addresses = {split_url(url)[1] for url in config.listen_client_urls}
    for url in config.listen_client_http_urls:
        if split_url(url)[1] in addresses:
            raise ConfigError(
                f"cannot bind both --listen-client-urls and --listen-client-http-urls on the same url {url}"
            )
    _check_advertised_urls("initial-advertise-peer-urls", config.initial_advertise_peer_urls, '"host:port"')
    _check_advertised_urls(
        "advertise-client-urls",
        config.advertise_client_urls,
        'in the format "host:port", "unix:/path/to/socket" or "unixs:/path/to/socket"',
    )
    if sum(map(bool, (config.initial_cluster, config.discovery_srv, config.discovery_endpoints))) > 1:
        raise ConfigError(
            'multiple discovery or bootstrap flags are set. Choose one of "initial-cluster", "discovery-endpoints" '
            'or "discovery-srv"'
        )
    if bool(config.discovery_token) != bool(config.discovery_endpoints):
        raise ConfigError("both --discovery-token and --discovery-endpoints must be set")
    if not all(endpoint.strip() for endpoint in config.discovery_endpoints):
        raise ConfigError("--discovery-endpoints must not contain empty endpoints")
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
    _check_tls(config)
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
