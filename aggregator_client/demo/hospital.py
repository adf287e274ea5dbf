"""One hospital of the demo: its node's folder, settings, processes and figures. Everything is done as a person would.

Settings go into node.toml, commands through the `fedpacs` command line, studies through DICOM associations; figures come
from the node's REST interface, catalogue and audit log.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from aggregator_client.demo.cohort import Exam, Hospital, label_csv
from aggregator_client.demo.pacs import USER, Pacs
from aggregator_client.demo.processes import Child, Children, DemoError, fedpacs
from aggregator_client.demo.progress import SiteLine
from aggregator_client.demo.results import AuditVerdict, Egress, SiteResult
from aggregator_client.demo.wrap import instances
from dicom_node.audit import AuditLog
from dicom_node.records import Catalogue

MODALITY_AE = "DEMO_MODALITY"
DATA_MANAGER, ADMIN = "demo data manager", "demo PACS administrator"


@dataclass
class Site:
    """A hospital with its folders and ports. `line` is what the progress board shows of it."""

    hospital: Hospital
    exams: Sequence[Exam]
    root: Path
    port: int
    http_port: int
    line: SiteLine
    pacs: Pacs | None = None
    by_pacs: int = 0
    """How many of `exams` go to the PACS first instead of straight to the node."""
    node: Child | None = None
    _client: httpx.Client | None = field(default=None, repr=False)

    @property
    def config(self) -> Path:
        return self.root / "node" / "node.toml"

    @property
    def folder(self) -> Path:
        return self.root / "node"

    def write_studies(self) -> int:
        """Write the studies as the scanner would, below modality/ and (what the PACS gets) pacs-studies/; the count."""
        count = 0
        for number, exam in enumerate(self.exams):
            folder = self.root / ("pacs-studies" if number < self.by_pacs else "modality")
            folder.mkdir(parents=True, exist_ok=True)
            for index, data in enumerate(instances(exam), start=1):
                data.save_as(folder / f"{number:04d}-{index}.dcm", enforce_file_format=True)
                count += 1
        self.line.total = count
        return count

    def init(self, children: Children) -> None:
        """`fedpacs node init`, then the settings an administrator would change."""
        ports = ["--port", self.port, "--http-port", self.http_port]
        names = ["--ae-title", self.hospital.ae_title, "--name", self.hospital.name]
        children.run(fedpacs("node", "init", self.folder, *ports, *names))
        settings: dict[str, Any] = {
            "dicom.host": "127.0.0.1",
            "dicom.processes": 1,
            "dicom.allowed_ae_titles": [MODALITY_AE],
            "study.quiet_seconds": 2,
            "federation.poll_seconds": 0.5,
            "federation.device": "cpu",
        }
        if self.pacs is not None:
            settings |= {
                "orthanc.url": self.pacs.url,
                "orthanc.username": USER,
                "orthanc.password_file": str(self.pacs.password_file),
                "orthanc.poll_seconds": 1.0,
            }
        set_values(self.config, settings)

    def start(self, children: Children) -> Child:
        """`fedpacs node run` as a process of its own."""
        self.node = children.start(
            f"the node of {self.hospital.name}",
            fedpacs("node", "run", "--config", self.config),
            self.root / "node.log",
            also=[self.folder / "logs"],
        )
        self.node.trouble = self._trouble
        return self.node

    def _trouble(self) -> str:
        """Which of the node's processes had to be restarted, from run/status.json."""
        processes: dict[str, dict[str, Any]] = self._read_status().get("processes", {})
        ended = {name: facts for name, facts in processes.items() if facts.get("restarts")}
        return "; ".join(
            f"its {name} ended {facts['restarts']} times, last with code {facts.get('last_exit')}"
            for name, facts in ended.items()
        )

    def stop(self, children: Children) -> None:
        """Stop the node in order (SIGTERM), and close what this process holds of it."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self.node is not None:
            children.end(self.node)
            self.node = None

    def ready(self) -> bool:
        """Whether the node says it is ready (run/status.json)."""
        return bool(self._read_status().get("ready"))

    def send(self, children: Children) -> list[Child]:
        """Start the modality (and, for the part that goes through the PACS, a second one)."""
        started = [self._modality(children, self.root / "modality", self.port, self.hospital.ae_title)]
        if self.pacs is not None and self.by_pacs:
            folder = self.root / "pacs-studies"
            started.append(self._modality(children, folder, self.pacs.dicom_port, self.pacs.ae_title))
        return started

    def _modality(self, children: Children, folder: Path, port: int, called: str) -> Child:
        module = "aggregator_client.demo.modality"
        argv = [sys.executable, "-m", module, str(folder), "127.0.0.1", str(port), called, MODALITY_AE]
        return children.start(
            f"the modality of {self.hospital.name}", argv, self.root / f"{folder.name}.log", passing=True
        )

    def import_labels(self, children: Children) -> None:
        """`fedpacs node labels import` with the data manager's CSV."""
        table = self.root / "labels.csv"
        table.write_text(label_csv(self.exams), encoding="utf-8")
        children.run(fedpacs("node", "labels", "import", table, "--config", self.config))

    def status(self) -> dict[str, Any]:
        """The node's own status over its REST interface. Errors: DemoError when it does not answer sensibly."""
        if self._client is None:
            token = (self.folder / "keys" / "api.token").read_text(encoding="utf-8").strip()
            headers = {"Authorization": f"Bearer {token}"}
            url = f"http://127.0.0.1:{self.http_port}"
            self._client = httpx.Client(base_url=url, headers=headers, timeout=10, trust_env=False)
        try:
            answer = self._client.get("/status")
            answer.raise_for_status()
            found: dict[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise DemoError(f"the node of {self.hospital.name} does not answer: {error}") from None
        return found

    def settled(self) -> bool:
        """Whether every study sent has been de-identified and labelled, or set aside with a reason (after `refresh`)."""
        line = self.line
        return (
            line.received == line.total
            and line.studies + line.set_aside == len(self.exams)
            and line.labelled == line.studies
        )

    def refresh(self) -> None:
        """Bring `line` up to date from the node's REST interface, catalogue and audit log."""
        pipeline = self.status()["pipeline"]
        self.line.received = int(pipeline["instances"])
        self.line.set_aside = int(pipeline["quarantined"]) + int(pipeline["excluded"])
        counts = self._counts()
        self.line.deidentified = counts["instances"]
        self.line.studies = counts["studies"]
        self.line.labelled = counts["labelled"]
        log = AuditLog(self.folder / "audit.db", readonly=True)
        try:
            self.line.bytes_out = sum(int(record.facts["bytes"]) for record in log.records("egress"))
            for record in log.records("round.trained"):
                self.line.round = int(record.facts.get("round", 0))
                self.line.loss = record.facts.get("loss", self.line.loss)
        finally:
            log.close()

    def _counts(self) -> dict[str, int]:
        catalogue = self.catalogue()
        try:
            return catalogue.counts()
        finally:
            catalogue.close()

    def catalogue(self) -> Catalogue:
        return Catalogue(self.folder / "catalogue.db", self.folder / "dataset", readonly=True)

    def result(self) -> SiteResult:
        """Everything the report says about this hospital, read after the last round."""
        self.refresh()
        log = AuditLog(self.folder / "audit.db", readonly=True)
        try:
            verdict = log.verify()
            egress = [_egress(record.at, record.facts) for record in log.records("egress")]
        finally:
            log.close()
        scanner = self.hospital.scanner
        return SiteResult(
            name=self.hospital.name,
            institution=self.hospital.institution,
            scanner=f"{scanner.manufacturer} {scanner.model}, {scanner.modality}, {scanner.bits_stored} bit",
            received=self.line.received,
            deidentified=self.line.deidentified,
            used=self.used(),
            bytes_in=sum(file.stat().st_size for file in self.sent_files()),
            mix=self.mix(),
            egress=egress,
            audit=AuditVerdict(verdict.ok, verdict.records, verdict.reason),
            arrived_by=f"C-STORE, {self.by_pacs} studies through Orthanc" if self.by_pacs else "C-STORE",
        )

    def sent_files(self) -> list[Path]:
        return sorted(file for name in ("modality", "pacs-studies") for file in (self.root / name).glob("*.dcm"))

    def used(self) -> int:
        """Instances of the studies that took part in at least one round."""
        catalogue = self.catalogue()
        try:
            return sum(study.instances for study in catalogue.studies() if catalogue.rounds_of(study.study_uid))
        finally:
            catalogue.close()

    def mix(self) -> Mapping[str, Mapping[str, int]]:
        """{partition: {finding: studies}}."""
        found: dict[str, Counter[str]] = {}
        for exam in self.exams:
            found.setdefault(exam.partition, Counter())[exam.finding] += 1
        return found

    def _read_status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / "run" / "status.json").read_text(encoding="utf-8"))
            return found
        except (OSError, ValueError):
            return {}


def _egress(at: float, facts: Mapping[str, Any]) -> Egress:
    privacy = facts.get("privacy", "")
    words = ", ".join(f"{key} {value}" for key, value in privacy.items()) if isinstance(privacy, dict) else str(privacy)
    round_number = facts.get("round")
    return Egress(
        at=datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S"),
        what=str(facts.get("what", "")),
        round=int(round_number) if round_number is not None else None,
        recipient=str(facts.get("recipient", "")),
        bytes=int(facts["bytes"]),
        sha256=str(facts.get("sha256", "")),
        privacy=words,
    )


def set_values(file: Path, values: Mapping[str, Any]) -> None:
    """Change `section.key` values in a commented TOML file, keeping its comments. Errors: DemoError for an unknown key."""
    lines = file.read_text(encoding="utf-8").splitlines()
    for name, value in values.items():
        section, key = name.rsplit(".", 1)
        lines[_line_of(lines, section, key, file)] = f"{key} = {json.dumps(value, ensure_ascii=False)}"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line_of(lines: Sequence[str], section: str, key: str, file: Path) -> int:
    inside = ""
    for index, line in enumerate(lines):
        heading = re.match(r"\[([\w.]+)\]", line)
        inside = heading[1] if heading else inside
        if inside == section and re.match(rf"(# *)?{re.escape(key)} *=", line):
            return index
    raise DemoError(f"{file.name} has no key {section}.{key}; the demo and `fedpacs node init` do not fit together")
