"""/metrics of a server, parsed by Prometheus' own parser."""

from __future__ import annotations

import gzip
import urllib.error
import urllib.request
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families


def get(url: str, path: str, headers: dict[str, str] | None = None, timeout_seconds: float = 30.0):
    """(status, headers, body)."""
    request = urllib.request.Request(url + path, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout_seconds) as response:
            return response.status, dict(response.headers), response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


@dataclass(frozen=True)
class Page:
    """types: {family as it is written: type}; samples: {(name, ((label, value), ...)): value}."""

    types: dict[str, str]
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float]

    def value(self, name: str, /, **labels: str) -> float:
        """The one sample of that name whose labels include these."""
        wanted = set(labels.items())
        found = [value for (its, had), value in self.samples.items() if its == name and wanted <= set(had)]
        assert len(found) == 1, f"{len(found)} samples of {name} with {labels}"
        return found[0]

    def total(self, name: str, /, **labels: str) -> float:
        wanted = set(labels.items())
        return sum(value for (its, had), value in self.samples.items() if its == name and wanted <= set(had))

    def names(self) -> set[str]:
        return {name for name, _ in self.samples}


def parse(text: str) -> Page:
    types = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE "))
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in samples, f"{key} is there twice"
            samples[key] = sample.value
    return Page(types, samples)


def scrape(url: str) -> Page:
    status, headers, body = get(url, "/metrics", {"Accept-Encoding": "gzip"})
    assert status == 200, body
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    if headers.get("Content-Encoding") == "gzip":
        body = gzip.decompress(body)
    return parse(body.decode())
