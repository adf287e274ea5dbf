"""What a run of the demo found: plain values, their JSON contract, and the table printed at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from aggregator_client.demo.progress import human_bytes

ALGORITHMS = ("local", "fedavg", "cds")
TITLES = {"local": "Each alone", "fedavg": "Federated (FedAvg)", "cds": "Centralised (CDS)"}


@dataclass(frozen=True)
class Egress:
    """One byte string that left a hospital, as its audit log lists it."""

    at: str
    what: str
    round: int | None
    recipient: str
    bytes: int
    sha256: str
    privacy: str


@dataclass(frozen=True)
class AuditVerdict:
    ok: bool
    records: int
    reason: str = ""


@dataclass(frozen=True)
class SiteResult:
    """One hospital: instance counts from its own node, label mix by partition, and everything that left it."""

    name: str
    institution: str
    scanner: str
    received: int
    deidentified: int
    used: int
    bytes_in: int
    mix: Mapping[str, Mapping[str, int]]
    egress: Sequence[Egress]
    audit: AuditVerdict
    arrived_by: str = "C-STORE"

    @property
    def bytes_out(self) -> int:
        return sum(one.bytes for one in self.egress)


@dataclass(frozen=True)
class AlgorithmResult:
    """Macro one-vs-rest AUC on the union of all hospitals' held-out patients, and on each hospital's own.

    For "local", `auc` is the mean over the hospitals' models on that union, and `per_site` the own model on own patients.
    """

    auc: float
    per_site: Mapping[str, float]
    bytes: int
    rounds: int
    seconds: float
    on_union: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundPoint:
    """The global model after `round` rounds: AUC per hospital and on the union."""

    round: int
    per_site: Mapping[str, float]
    auc: float


@dataclass(frozen=True)
class DemoResult:
    """Everything the table, the JSON object and the report are made from."""

    sites: Sequence[SiteResult]
    algorithms: Mapping[str, AlgorithmResult]
    curve: Sequence[RoundPoint]
    held_out_patients: int
    notes: Sequence[str]
    seconds: float
    project: Mapping[str, Any]

    def contract(self, report: str) -> dict[str, Any]:
        """The JSON object `fedpacs demo --json` prints (its keys are stable)."""
        return {
            "sites": [
                {
                    "name": site.name,
                    "received": site.received,
                    "deidentified": site.deidentified,
                    "used": site.used,
                    "bytes_out": site.bytes_out,
                }
                for site in self.sites
            ],
            "algorithms": {
                name: {
                    "auc": round(result.auc, 4),
                    "per_site": {site: round(value, 4) for site, value in result.per_site.items()},
                    "bytes": result.bytes,
                    "rounds": result.rounds,
                    "seconds": round(result.seconds, 1),
                }
                for name, result in self.algorithms.items()
            },
            "report": report,
        }

    def table(self) -> Table:
        """The closing table for the terminal: algorithms × (union, each hospital, bytes, seconds)."""
        table = Table(
            title=f"Macro AUC on the same {self.held_out_patients} held-out patients",
            title_justify="left",
            title_style="bold",
            caption="Centralised and local training are yardsticks computed on this machine only; "
            "a real federation never pools the data.",
            caption_justify="left",
        )
        table.add_column("trained", no_wrap=True)
        table.add_column("all", justify="right", style="bold")
        for site in self.sites:
            table.add_column(site.name, justify="right")
        table.add_column("left each", justify="right")
        table.add_column("s", justify="right")
        for name in ALGORITHMS:
            result = self.algorithms[name]
            table.add_row(
                TITLES[name],
                f"{result.auc:.3f}",
                *(f"{result.per_site[site.name]:.3f}" for site in self.sites),
                {"local": "nothing", "cds": f"images, {human_bytes(result.bytes / len(self.sites))}"}.get(
                    name, human_bytes(result.bytes / len(self.sites))
                ),
                f"{result.seconds:.0f}",
                style="bold green" if name == "fedavg" else None,
            )
        return table

    def verdict(self) -> str:
        """One plain sentence on what the figures say, whichever way they fell."""
        local, fed, cds = (self.algorithms[name].auc for name in ALGORITHMS)
        gap = cds - fed
        beside = f"{gap:.3f} below" if gap > 0.0005 else f"{-gap:.3f} above" if gap < -0.0005 else "level with"
        return (
            f"The federated model reaches an AUC of {fed:.3f}: {abs(fed - local):.3f} "
            f"{'above' if fed >= local else 'below'} what a hospital reaches alone ({local:.3f}) and "
            f"{beside} training on pooled images ({cds:.3f})."
        )
