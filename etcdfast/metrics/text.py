"""Families as the text that Prometheus reads, by way of prometheus_client."""

import gzip

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric

from etcdfast.metrics import families

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
GZIP_LEVEL = 1  # 230 KB become 12 KB in 3 ms


class _Odd(str):
    """A counter whose name does not end in _total: prometheus_client must not put that word behind it."""

    __slots__ = ()

    def __eq__(self, other):
        return False

    __hash__ = str.__hash__


class _Collector:
    def __init__(self, found):
        self._found = found

    def collect(self):
        for family in self._found:
            # It puts _total behind a counter's name by itself.
            name = family.name.removesuffix("_total") if family.kind == "counter" else family.name
            metric = Metric(name, family.help, family.kind)
            if family.kind == "counter" and not family.name.endswith("_total"):
                metric.type = _Odd("counter")
            for suffix, labels, value in family.samples:
                metric.add_sample(family.name + suffix, labels, value)
            yield metric


def render(found):
    """Bytes of the text format 0.0.4."""
    return generate_latest(_Collector(found))


def answer(sources, features, accept_encoding):
    """(status, headers, body) of one scrape."""
    body = render(families.collect(sources, features))
    headers = {"Content-Type": CONTENT_TYPE}
    if "gzip" in accept_encoding.lower():
        body = gzip.compress(body, GZIP_LEVEL)
        headers["Content-Encoding"] = "gzip"
    return 200, headers, body
