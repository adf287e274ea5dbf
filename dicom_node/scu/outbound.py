"""Results on their way to a PACS: kept on disk until the PACS has them, retried with back-off, each sent once.

An instance is put under (peer, SOP Instance UID); one that was delivered is not taken again, so a job that is repeated after a
crash does not send a result a second time. Should the crash fall between the PACS's answer and our note of it, the very same
bytes are sent again under the same UID, which a PACS treats as the instance it has.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from dicom_node.database import connect
from dicom_node.errors import InputError, NodeError
from dicom_node.queue import Job, WorkQueue, migrations
from dicom_node.scu.peer import Peer
from dicom_node.scu.store import send_files
from dicom_node.spool import part10
from dicom_node.spool.segment import sync_folder

_BATCH = 100


@dataclass
class Delivery:
    """What one `deliver` did."""

    sent: int = 0
    retried: int = 0
    dead: int = 0


class Outbound:
    """The outbound queue in a folder of its own (de-identified results: right of the wall)."""

    def __init__(self, folder: Path, calling: str = "FEDPACS") -> None:
        self.folder = folder
        self.calling = calling
        folder.mkdir(parents=True, exist_ok=True)
        self.db = connect(folder / "outbound.db", migrations)
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS delivered(peer TEXT, sop_uid TEXT, at REAL, PRIMARY KEY(peer, sop_uid)) WITHOUT ROWID"
        )
        self.queue = WorkQueue(folder / "outbound.db", "outbound")

    def put(self, data: bytes, peer: Peer) -> bool:
        """Take a Part 10 file for `peer`; durable on return. False when it waits already or was delivered before."""
        try:
            uid = part10.parse(data).sop_uid
        except part10.Part10Error as error:
            raise InputError(f"A result for {peer} cannot be queued: {error}; write it again.") from None
        if self.db.execute("SELECT 1 FROM delivered WHERE peer=? AND sop_uid=?", (str(peer), uid)).fetchone():
            return False
        path = self.folder / f"{uid}.dcm"
        temporary = path.with_suffix(".new")
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(self.folder)
        return self.queue.put(f"{peer}|{uid}", {"peer": str(peer), "sop_uid": uid})

    def deliver(self) -> Delivery:
        """Send what is due, peer by peer; call it again and again."""
        jobs: dict[str, list[Job]] = defaultdict(list)
        while sum(map(len, jobs.values())) < _BATCH and (job := self.queue.claim(f"outbound-{os.getpid()}")):
            jobs[job.payload["peer"]].append(job)
        done = Delivery()
        for name, waiting in jobs.items():
            self._deliver_to(Peer.parse(name), waiting, done)
        return done

    def _deliver_to(self, peer: Peer, jobs: list[Job], done: Delivery) -> None:
        paths = {self.folder / f"{job.payload['sop_uid']}.dcm": job for job in jobs}
        failed: dict[Path, str] = {}

        def tell(path: Path, why: str) -> None:
            if why:
                failed[path] = why
                return
            job = paths[path]
            self.db.execute(
                "INSERT OR REPLACE INTO delivered VALUES(?,?,?)", (str(peer), job.payload["sop_uid"], time.time())
            )
            self.queue.done(job)
            done.sent += 1

        try:
            send_files(peer, list(paths), self.calling, progress=tell)
        except NodeError as error:
            failed.update({path: str(error) for path in paths if path not in failed})
        for path, why in failed.items():
            if self.queue.fail(paths[path], why) == "dead":
                done.dead += 1
            else:
                done.retried += 1
        self._tidy(paths)

    def _tidy(self, paths: dict[Path, Job]) -> None:
        """Remove files that no peer waits for any more."""
        waiting = {row[0].rsplit("|", 1)[1] for row in self.db.execute("SELECT key FROM jobs WHERE queue='outbound'")}
        for path in paths:
            if path.stem not in waiting:
                path.unlink(missing_ok=True)
