"""Runs installed models on new de-identified studies by themselves: `python -m aggregator_client.inference --config node.toml`.

Each eligible study that a model of `[inference]` is for goes through `fedpacs model predict` once, in a process of its own. What
it writes (DICOM Segmentations and measurement reports) lies in federation/outbox until the node's worker, left of the wall,
gives it its original identity. UIDs of results follow from model and series, so a study done twice after a
kill gives the same objects.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
from sqlite_utils.migrations import Migrations

from aggregator_client import gpu_queue, hours
from dicom_node.audit import AuditLog
from dicom_node.config import InferenceModel, NodeConfig, load_config
from dicom_node.database import connect, transaction
from dicom_node.logs import configure
from dicom_node.pause import is_paused
from dicom_node.records import Catalogue, StudyRecord
from dicom_node.service import process_name, up
from dicom_node.status import write_json, write_last_error
from dicom_node.supervise import die_with_parent
from trainer.modelcard import ModelCard, read_card

NICE = 10  # a node receives and de-identifies while it predicts
PREDICT_SECONDS = 3600.0
_COMMAND = (sys.executable, "-c", "from dicom_node.cli import main; main()")
migrations = Migrations("aggregator_client.inference")
log = structlog.get_logger("fedpacs.inference")


@migrations()
def m001_done(db: Any) -> None:
    db.execute(
        """CREATE TABLE done(model TEXT NOT NULL, study_uid TEXT NOT NULL, content_hash TEXT NOT NULL, outputs INTEGER NOT NULL,
             reason TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (model, study_uid, content_hash)) WITHOUT ROWID"""
    )


@dataclass(frozen=True)
class Installed:
    """A model of the configuration with its card. Raises SpecError when the folder holds none."""

    settings: InferenceModel
    folder: Path
    card: ModelCard

    def wants(self, study: StudyRecord) -> bool:
        """Whether the model is for studies of this kind."""
        parts = {part.upper() for part in self.settings.body_parts}
        return (not self.settings.modalities or study.modality in self.settings.modalities) and (
            not parts or study.body_part.upper() in parts
        )


def outbox(config: NodeConfig) -> Path:
    """Where finished results wait for the worker."""
    return config.storage.federation / "outbox"


class _NotNow(Exception):
    """The node is paused, or its hours are over."""


class Inference:
    """All models of one node. Raises SpecError (a bad model folder) when made."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.models = [installed(config, one) for one in config.inference.models]
        config.storage.federation.mkdir(parents=True, exist_ok=True)
        self._db = connect(config.storage.federation / "inference.db", migrations)
        self._seen: tuple[int, ...] = ()

    def close(self) -> None:
        self._db.close()

    def step(self) -> int:
        """Predict what waits; returns how many studies were done. Nothing while paused or outside the allowed hours."""
        changed = _changed(self.config.storage.catalogue)
        if changed == self._seen or is_paused(self.config) or not hours.allowed(self.config):
            return 0
        count = 0
        for model, study in self.waiting():
            try:
                self._may_wait()
                with gpu_queue.of_node(self.config).turn(1, self._may_wait) as env:
                    self._predict(model, study, env)
            except _NotNow:
                return count
            count += 1
        self._seen = changed
        return count

    def _may_wait(self) -> None:
        if is_paused(self.config) or not hours.allowed(self.config):
            raise _NotNow

    def waiting(self) -> Iterator[tuple[Installed, StudyRecord]]:
        """Eligible studies that a model is for and has not seen with their present content."""
        with closing(Catalogue(self.config.storage.catalogue, readonly=True)) as catalogue:
            eligible = list(catalogue.studies("eligible"))
        for model in self.models:
            rows = self._db.execute("SELECT study_uid, content_hash FROM done WHERE model = ?", (model.card.sha256,))
            done = {tuple(row) for row in rows}
            for study in eligible:
                if (study.study_uid, study.content_hash) not in done and model.wants(study):
                    yield model, study

    def _predict(self, model: Installed, study: StudyRecord, env: Mapping[str, str]) -> None:
        work = self.config.storage.federation / "inference"
        shutil.rmtree(work, ignore_errors=True)
        with closing(Catalogue(self.config.storage.catalogue, readonly=True)) as catalogue:
            files = [self.config.storage.dataset / one.path for one in catalogue.instances(study.study_uid)]
        argv = [
            *_COMMAND,
            "model",
            "predict",
            *map(str, files),
            "--model",
            str(model.folder),
            "--out",
            str(work),
            "--json",
        ]
        argv += ["--type", model.settings.type, "--device", self.config.federation.device]
        code, told = _run(argv, env)
        results = sorted(work.glob("*.dcm")) if work.exists() else []
        reason = "" if code == 0 else told
        box = outbox(self.config)
        box.mkdir(parents=True, exist_ok=True, mode=0o700)
        with closing(AuditLog(self.config.storage.audit)) as audit:
            audit.append(
                "inference.done", study=study.study_uid, model=model.card.sha256, name=model.card.name, outputs=len(results),
                reason=reason,
            )  # fmt: skip
        for file in results:
            _move(file, box / f"{model.card.sha256[:16]}-{file.name}")
        with transaction(self._db) as db:
            db.execute(
                "INSERT OR REPLACE INTO done(model, study_uid, content_hash, outputs, reason, at) VALUES(?, ?, ?, ?, ?, ?)",
                (model.card.sha256, study.study_uid, study.content_hash, len(results), reason, time.time()),
            )
        if reason:
            log.warning("study set aside by a model", model=model.card.name, reason=reason)
        write_last_error(self.config.storage.run, "inference", f"{model.card.name}: {reason}" if reason else "")

    def counts(self) -> dict[str, int]:
        """Studies done, results made and studies set aside."""
        row = self._db.execute("SELECT count(*), coalesce(sum(outputs), 0), sum(reason <> '') FROM done").fetchone()
        return {"studies": row[0], "results": row[1], "set_aside": row[2] or 0}


def installed(config: NodeConfig, settings: InferenceModel) -> Installed:
    """The model at its folder. Raises SpecError for no model folder, or one whose results no PACS could take."""
    from trainer.errors import SpecError

    folder = config.root / settings.folder
    card = read_card(folder)
    if card.task.name != "segmentation":
        raise SpecError(
            f"{folder} is a model for {card.task.name}; [inference] runs segmentation models, whose results a PACS can show"
        )
    return Installed(settings, folder, card)


def _run(argv: list[str], env: Mapping[str, str]) -> tuple[int, str]:
    """(exit code, the last sentence it said)."""
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=PREDICT_SECONDS,
            check=False,
            preexec_fn=lambda: os.nice(NICE),
            env=os.environ | env,
        )
    except subprocess.TimeoutExpired:
        return -1, f"the prediction took longer than {PREDICT_SECONDS:g} s"
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return done.returncode, (said[-1] if said else f"it ended with code {done.returncode}").removeprefix("fedpacs: ")


def _move(file: Path, to: Path) -> None:
    """Whole or absent in the outbox, and durable."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
    file.replace(to)


def _changed(catalogue: Path) -> tuple[int, ...]:
    """Changes whenever the catalogue does."""
    files = (catalogue, catalogue.with_name(catalogue.name + "-wal"))
    return tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)


def run(config: NodeConfig) -> None:
    """Serve until the process is told to stop."""
    hours.allowed(config)
    up(config, process_name("inference"))
    inference = Inference(config)
    try:
        while True:
            done = inference.step()
            facts = {"state": "working" if done else "waiting", "pid": os.getpid(), "at": time.time()}
            write_json(config.storage.run / "inference.json", facts | inference.counts())
            if not done:
                time.sleep(config.inference.poll_seconds)
    finally:
        inference.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m aggregator_client.inference", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the node's node.toml")
    arguments = parser.parse_args(argv)
    die_with_parent()

    def stop(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    config = load_config(arguments.config)
    try:
        configure(config.storage.logs, "inference")
        run(config)
    except Exception as error:
        if not hasattr(error, "exit_code") or os.environ.get("FEDPACS_TRACE"):
            raise
        print(f"fedpacs: {error}", file=sys.stderr)
        write_last_error(config.storage.run, "inference", str(error))
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
