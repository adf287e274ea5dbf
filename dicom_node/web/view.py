"""What the console and the REST interface show: counts, states, decisions and egress; no identified value.

Reads the node's databases and status files, and changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dicom_node.audit import AuditLog
from dicom_node.config import NodeConfig
from dicom_node.orthanc_reader.ledger import Ledger, ledger_path
from dicom_node.pause import is_paused, pause_facts
from dicom_node.projects import ProjectRecord, Projects
from dicom_node.records import Catalogue, StudyRecord
from dicom_node.records.budget import PrivacyBudget
from dicom_node.results import Results
from dicom_node.spool import Spool, SpoolStats
from dicom_node.status import read_last_error
from dicom_node.web import work

COUNT_SECONDS = 2.0  # so that ages and free disk go on where nothing else does
_OUTCOMES = ("stored", "duplicate", "conflict", "quarantined")
_NOT_TAKEN = (
    "rejected: ",
    "refused: ",
    "aborted: ",
)  # associations, objects, associations under way; the reason follows


class NodeView:
    """Opens every database once; for one thread."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        storage = config.storage
        self.spool = Spool(storage.spool)
        self.catalogue = Catalogue(storage.catalogue, storage.dataset)
        self.projects_table = Projects(storage.catalogue)
        self.audit = AuditLog(storage.audit)
        sources = config.orthanc.sources
        self.ledgers = [Ledger(ledger_path(storage.spool), source.url.rstrip("/")) for source in sources]
        self.results = Results(config)
        self.cards = work.Cards()
        self._counts: dict[str, tuple[int, float, Any]] = {}

    def close(self) -> None:
        for each in (self.spool, self.catalogue, self.projects_table, self.audit, self.results):
            each.close()
        for ledger in self.ledgers:
            ledger.close()

    # -- status -------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """GET /status."""
        stats, counts, reasons = self._counted()
        return {
            "node": self.connection(),
            "paused": is_paused(self.config),
            "pause": self.paused(),
            "pipeline": self._pipeline(stats.studies, stats.instances, counts),
            "reasons": reasons,
            "senders": [
                {
                    "ae_title": ae, "instances": c.get("stored", 0), **{k: c.get(k, 0) for k in _OUTCOMES},
                    "bytes": c.get("bytes", 0), "echoes": c.get("echo", 0),
                    "not_taken": {k: v for k, v in sorted(c.items()) if k.startswith(_NOT_TAKEN)},
                    "last_seen": at,
                }
                for ae, c, at in self._senders(stats.peers)
            ],
            "disk": {
                "free_mb": stats.free_mb, "min_free_mb": self.config.storage.min_free_mb, "spool_bytes": stats.bytes,
                "refusing": self._refusing(),
            },
            "oldest_waiting_s": None if stats.oldest_waiting_s is None else round(stats.oldest_waiting_s),
            "orthanc": self._orthanc(),
            "optouts": len(self.catalogue.withdrawn()),
            "processes": self._daemon().get("processes", {}),
            "privacy": self._privacy(),
            "training": work.now(self.config),
            "drift": work.drift(self.config),
            "gpus": self.cards.latest(),
            "last_error": self._last_error(),
            "at": _iso(time.time()),
        }  # fmt: skip

    def _privacy(self) -> dict[str, Any]:
        """What noisy trainings spent of the worst patient's privacy, by project and in all."""
        with closing(PrivacyBudget(self.config.storage.catalogue)) as budget:
            spent, projects = budget.site_epsilon(), budget.projects()
        return {
            "epsilon": spent,
            "allowed": self.config.privacy.epsilon,
            "delta": self.config.privacy.delta,
            "left": max(0.0, self.config.privacy.epsilon - spent),
            "projects": projects,
        }

    def _counted(self) -> tuple[SpoolStats, dict[str, int], dict[str, int]]:
        """Counts over whole tables of the spool and of the catalogue, and why studies were set aside."""
        stats, reasons = self._kept("spool", self.spool.db, lambda: (self.spool.stats(), self._reasons()))
        counts = self._kept(
            "catalogue", self.catalogue.connection, lambda: {**self.catalogue.counts(), "used": self.catalogue.used()}
        )
        return stats, counts, reasons

    def _kept(self, name: str, connection: sqlite3.Connection, count: Callable[[], Any]) -> Any:
        """What `count` said last; asked again when somebody has written to that database since, or after COUNT_SECONDS."""
        version, now = _version(connection), time.monotonic()
        known = self._counts.get(name)
        if known is None or known[0] != version or now - known[1] > COUNT_SECONDS:
            known = self._counts[name] = (version, now, count())
        return known[2]

    def paused(self) -> dict[str, Any] | None:
        """{by, reason, at} of a pause."""
        facts = pause_facts(self.config)
        return None if facts is None else {**facts, "at": _iso(facts.get("at"))}

    def connection(self) -> dict[str, Any]:
        """The four values for the PACS."""
        dicom = self.config.dicom
        senders = ", ".join(dicom.allowed_ae_titles) or "any AE title"
        return {
            "name": self.config.node.name,
            "ae_title": dicom.ae_title,
            "host": reachable_host(dicom.host),
            "port": dicom.port,
            "senders": f"{senders} from {', '.join(dicom.allowed_networks)}",
            "tls": dicom.tls_certificate is not None,
        }

    def _pipeline(self, studies: dict[str, int], instances: dict[str, int], counts: dict[str, int]) -> dict[str, int]:
        return {
            "instances": sum(instances.values()),
            "received": sum(studies.values()),
            "complete": sum(studies.values()) - studies.get("receiving", 0),
            "trained": counts["used"],
            "receiving": studies.get("receiving", 0),
            "waiting": studies.get("complete", 0),
            "deidentified": studies.get("deidentified", 0),
            "excluded": studies.get("excluded", 0),
            "quarantined": studies.get("quarantined", 0),
            "quarantined_instances": instances.get("quarantined", 0),
            "eligible": counts.get("eligible", 0),
            "withdrawn": counts.get("withdrawn", 0),
            "labelled": counts.get("labelled", 0),
            "patients": counts.get("patients", 0),
        }

    def _reasons(self) -> dict[str, int]:
        """Why studies were set aside, with how many, the commonest first."""
        rows = self.spool.db.execute(
            "SELECT state || ': ' || reason, count(*) FROM studies WHERE state IN ('excluded', 'quarantined')"
            " GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 20"
        )
        return {str(reason): int(count) for reason, count in rows}

    def _refusing(self) -> bool:
        """Whether a receiver answers 0xA700 now, because the disk is below its watermark."""
        for path in self.config.storage.run.glob("receiver-*.json"):
            try:
                if (
                    json.loads(path.read_text())["refusing"]
                    and Path(f"/proc/{path.stem.removeprefix('receiver-')}").exists()
                ):
                    return True
            except (OSError, ValueError, KeyError):
                continue  # it is just being written, or its process has just ended
        return False

    def _senders(self, peers: dict[str, dict[str, int]]) -> list[tuple[str, dict[str, int], str]]:
        last = dict(self.spool.db.execute("SELECT ae, max(last_at) FROM counters GROUP BY ae").fetchall())
        return [(ae, counts, _iso(last.get(ae))) for ae, counts in sorted(peers.items())]

    def _orthanc(self) -> dict[str, Any] | None:
        """The sums over every Orthanc, and each; None when the node follows none."""
        if not self.ledgers:
            return None
        counts = [one.counts() for one in self.ledgers]
        each = [
            {"url": one.url, **c, "last_error": one.last_error()} for one, c in zip(self.ledgers, counts, strict=True)
        ]
        sums = {name: sum(one[name] for one in counts) for name in counts[0]}
        return {**sums, "last_error": self._orthanc_error(), "each": each}

    def _orthanc_error(self) -> str:
        return next(filter(None, (one.last_error() for one in self.ledgers)), "")

    def _daemon(self) -> dict[str, Any]:
        """run/status.json as the daemon last wrote it; {} when there is none."""
        try:
            return dict(json.loads((self.config.storage.run / "status.json").read_text()))
        except (OSError, ValueError):
            return {}

    def _last_error(self) -> str:
        return self._orthanc_error() or read_last_error(self.config.storage.run)

    # -- de-identified side -------------------------------------------------------------------------------------------

    def studies(self, state: str | None, limit: int, offset: int) -> list[dict[str, Any]]:
        """GET /studies: records as the catalogue has them, with labels and rounds."""
        return [self._with_labels(study) for study in self.catalogue.studies(state, limit, offset)]

    def study(self, study_uid: str) -> dict[str, Any] | None:
        """One of them."""
        found = self.catalogue.study(study_uid)
        return None if found is None else self._with_labels(found)

    def _with_labels(self, study: StudyRecord) -> dict[str, Any]:
        return {
            **_study(study),
            "labels": {label.name: label.value for label in self.catalogue.labels(study.study_uid)},
            "rounds": [{"project": p, "round": r} for p, r in self.catalogue.rounds_of(study.study_uid)],
        }

    def projects(self) -> list[dict[str, Any]]:
        """GET /projects."""
        return [_project(p) for p in self.projects_table.list()]

    def egress(self, limit: int = 200, offset: int = 0) -> list[dict[str, Any]]:
        """What left the hospital, newest first."""
        names = ("what", "project", "round", "recipient", "bytes", "sha256", "privacy")
        known = {project.digest: project.name for project in self.projects_table.list()}
        return [
            {
                "seq": r.seq,
                "at": _iso(r.at),
                **{name: r.facts.get(name, "") for name in names},
                "name": known.get(str(r.facts.get("project", "")), ""),
                "spent": spent(r.facts.get("privacy")),
            }
            for r in self.audit.newest("egress", limit, offset)
        ]

    def egress_total(self) -> dict[str, Any]:
        """How many messages and bytes in all, and by project."""
        sums = self.audit.sums("egress", "bytes", "project")
        return {
            "messages": sum(count for count, _ in sums.values()),
            "bytes": sum(size for _, size in sums.values()),
            "projects": {digest: {"messages": count, "bytes": size} for digest, (count, size) in sums.items()},
        }

    def fingerprint(self) -> str:
        """Changes when anything that a page shows changes; cheap enough to be asked for every second.

        The status files are small. While a study waits, its age is worth a new look now and then.
        """
        run = self.config.storage.run
        versions = [_version(db) for db in (self.spool.db, self.catalogue.connection, self.audit.connection)]
        waiting = self.spool.db.execute(
            "SELECT 1 FROM studies WHERE state IN ('receiving', 'complete') LIMIT 1"
        ).fetchone()
        processes = {
            name: (one.get("pid"), one.get("state"), one.get("restarts"))
            for name, one in self._daemon().get("processes", {}).items()
        }
        files = [_stamp(run / name) for name in ("paused", "training.json", "federation.json")]
        examples = [
            _stamp(path) for path in sorted((self.config.storage.federation / "examples").glob("*/examples.json"))
        ]
        age = int(time.time() / 10) if waiting else 0
        facts = [versions, processes, files, examples, read_last_error(run), age]
        return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:16]

    def audit_head(self) -> dict[str, Any]:
        seq, digest = self.audit.head()
        return {"records": seq, "head": digest}


def spent(privacy: Any) -> str:
    """What a message's privacy settings come to, in a few words: the protection, and ε and δ where a budget was charged."""
    if not isinstance(privacy, dict) or not privacy:
        return ""
    words = [str(privacy.get("mode", "")).replace("_", " ")]
    budget = privacy.get("spent") or privacy.get("differential_privacy") or privacy
    if isinstance(budget, dict) and isinstance(budget.get("epsilon"), int | float):
        delta = budget.get("delta")
        words.append(f"ε {budget['epsilon']:.3g}" + (f" (δ {delta:.0e})" if isinstance(delta, float) else ""))
    return ", ".join(filter(None, words))


def _version(connection: sqlite3.Connection) -> int:
    """SQLite's count of the commits of other connections."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _study(study: StudyRecord) -> dict[str, Any]:
    return {
        "study_uid": study.study_uid,
        "patient": study.patient,
        "modality": study.modality,
        "body_part": study.body_part,
        "sex": study.sex,
        "age_years": study.age_years,
        "instances": study.instances,
        "state": study.state,
        "reason": study.reason,
        "content_hash": study.content_hash,
        "added_at": _iso(study.added_at),
    }


def _project(project: ProjectRecord) -> dict[str, Any]:
    try:
        document = json.dumps(json.loads(project.document), indent=1, ensure_ascii=False)
    except ValueError:
        document = ""
    return {
        "digest": project.digest,
        "name": project.name,
        "version": project.version,
        "state": project.state,
        "by": project.decided_by,
        "role": project.role,
        "reason": project.reason,
        "at": _iso(project.decided_at),
        "offered_at": _iso(project.offered_at),
        "document": document,
    }


def reachable_host(host: str) -> str:
    """What to type into the PACS for this node's host: its name when it listens everywhere."""
    return socket.gethostname() if host in ("0.0.0.0", "::", "") else host


def _iso(at: float | None) -> str:
    return "" if not at else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
