"""GET /metrics: the status in Prometheus' text format, read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class StatusCollector(Collector):
    """Turns one `NodeView.status()` and the egress total into metric families."""

    def __init__(self, status: dict[str, Any], egress_bytes: int, audit_records: int) -> None:
        self.status, self.egress_bytes, self.audit_records = status, egress_bytes, audit_records

    def collect(self) -> Iterator[Metric]:
        status, pipeline = self.status, self.status["pipeline"]
        studies = GaugeMetricFamily("fedpacs_studies", "Studies by state", labels=["state"])
        for state in ("receiving", "waiting", "deidentified", "excluded", "quarantined", "eligible", "withdrawn"):
            studies.add_metric([state], pipeline[state])
        yield studies
        received = CounterMetricFamily(
            "fedpacs_instances", "Instances by sender and outcome", labels=["ae_title", "outcome"]
        )
        for sender in status["senders"]:
            for outcome in ("stored", "duplicate", "conflict", "quarantined"):
                received.add_metric([sender["ae_title"], outcome], sender[outcome])
        yield received
        size = CounterMetricFamily("fedpacs_received_bytes", "Bytes of data sets by sender", labels=["ae_title"])
        refused = CounterMetricFamily(
            "fedpacs_not_taken", "Associations rejected or aborted and objects refused", labels=["ae_title", "reason"]
        )
        for sender in status["senders"]:
            size.add_metric([sender["ae_title"]], sender["bytes"])
            for reason, count in sender["not_taken"].items():
                refused.add_metric([sender["ae_title"], reason], count)
        yield size
        yield refused
        up = GaugeMetricFamily("fedpacs_process_up", "Whether a process of the node runs", labels=["process"])
        restarts = CounterMetricFamily("fedpacs_process_restarts", "Restarts of a process", labels=["process"])
        for name, process in status["processes"].items():
            up.add_metric([name], int(process["running"]))
            restarts.add_metric([name], process["restarts"])
        yield up
        yield restarts
        yield GaugeMetricFamily(
            "fedpacs_disk_free_bytes", "Free bytes under the spool", status["disk"]["free_mb"] << 20
        )
        yield GaugeMetricFamily(
            "fedpacs_disk_refusing", "1 while objects are refused for want of disk", int(status["disk"]["refusing"])
        )
        yield GaugeMetricFamily("fedpacs_spool_bytes", "Bytes kept in the spool", status["disk"]["spool_bytes"])
        yield GaugeMetricFamily(
            "fedpacs_oldest_waiting_seconds", "Age of the oldest study not done yet", status["oldest_waiting_s"] or 0
        )
        yield GaugeMetricFamily("fedpacs_paused", "1 while paused", int(status["paused"]))
        yield CounterMetricFamily("fedpacs_egress_bytes", "Bytes that left the hospital", self.egress_bytes)
        yield GaugeMetricFamily("fedpacs_audit_records", "Records in the audit log", self.audit_records)


def exposition(status: dict[str, Any], egress_bytes: int, audit_records: int) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status, egress_bytes, audit_records))
    return generate_latest(registry)
