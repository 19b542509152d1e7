"""Metrics as Prometheus reads them."""

from __future__ import annotations

import requests
from prometheus_client.parser import text_string_to_metric_families


def parse(text: str) -> dict[str, float]:
    """Return the samples of an exposition, by name and labels in the order of the alphabet."""
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert name not in samples, f"{name} is there twice"
            samples[name] = sample.value
    return samples


def scrape(url: str) -> dict[str, float]:
    """Return the samples that a service shows."""
    answer = requests.get(f"{url}/metrics", timeout=20)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    return parse(answer.text)
