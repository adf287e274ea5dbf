"""The demo itself: starts hospitals and a coordinator as real processes, walks them through a project, and reports."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aggregator_client.demo import compare, pacs
from aggregator_client.demo.cohort import HOSPITALS, deal
from aggregator_client.demo.coordination import Coordination
from aggregator_client.demo.folder import fresh_folder
from aggregator_client.demo.headers import BeforeAfter, before_after
from aggregator_client.demo.hospital import ADMIN, Site
from aggregator_client.demo.images import load_pack
from aggregator_client.demo.processes import Child, Children, free_ports
from aggregator_client.demo.progress import Board, board
from aggregator_client.demo.report import write_report
from aggregator_client.demo.results import DemoResult

STALL_SECONDS = 90.0
BY_PACS = 12
"""How many of the first hospital's studies go through its Orthanc, when there is one."""


def run_demo(out: Path, sites: int, rounds: int, studies: int | None = None) -> tuple[DemoResult, Path]:
    """Run everything below `out` and write out/report.html; with `studies`, only the first so many of each hospital.

    Errors: InputError, RefusedError or StorageError about `out`; DemoError or StalledError naming the step that failed
    and what the process behind it said last. No process is left behind in any case.
    """
    with fresh_folder(out) as folder, board([hospital.name for hospital in HOSPITALS[:sites]]) as shown:
        with Children() as children:
            run = Run(folder, shown, children, sites, rounds, studies)
            result = run.whole()
        example = run.example()
        return result, write_report(folder / "report.html", result, example)


class Run:
    """One run: the steps in order. Each step leaves what it made on `self`."""

    def __init__(
        self, folder: Path, shown: Board, children: Children, sites: int, rounds: int, studies: int | None
    ) -> None:
        self.folder, self.shown, self.children, self.rounds = folder, shown, children, rounds
        self.started = time.monotonic()
        self.notes: list[str] = []
        ports = free_ports(2 * sites + 3)
        self.sites = [
            Site(exams[0].hospital, exams[:studies], folder / exams[0].hospital.folder, ports.pop(), ports.pop(), line)
            for exams, line in zip(deal(load_pack(), sites), shown.lines, strict=True)
        ]
        hospitals = [site.hospital for site in self.sites]
        self.coordination = Coordination(folder / "federation", ports.pop(), rounds, hospitals)
        self._give_first_hospital_a_pacs(ports.pop(), ports.pop())

    def whole(self) -> DemoResult:
        self.shown.phase("writing the studies as each hospital's scanner would")
        for site in self.sites:
            site.write_studies()
        self.start()
        self.receive()
        self.approve()
        seconds = self.federate()
        return self.compare(seconds)

    def start(self) -> None:
        """Folders and keys first; then invitation and enrolment, as files between institutions; then the daemons."""
        self.shown.phase("making a coordinator and the hospitals' nodes; exchanging invitations and enrolments")
        self.coordination.init(self.children)
        self._at_each(self._join)
        self.coordination.sign_project(self.children)
        self.shown.phase("starting the nodes")
        for site in self.sites:
            site.start(self.children)
            if site.pacs is not None:
                site.pacs.start(self.children, f"http://127.0.0.1:{site.http_port}", site.folder / "keys" / "api.token")
        self.children.wait(
            "the start of the nodes",
            lambda: (all(site.ready() for site in self.sites), [site.ready() for site in self.sites]),
            STALL_SECONDS,
            self.nodes(),
        )

    def receive(self) -> None:
        """C-STORE, de-identification and labels, until every study stands labelled in its hospital's catalogue or set aside."""
        self.shown.phase("modalities send by C-STORE; the nodes receive and de-identify")
        for site in self.sites:
            site.send(self.children)
        self._at_each(lambda site: site.import_labels(self.children))
        self.children.wait("receiving and de-identification", self._received, STALL_SECONDS, self.nodes())

    def _received(self) -> tuple[bool, object]:
        for site in self.sites:
            site.refresh()
        self.shown.refresh()
        done = all(site.settled() for site in self.sites)
        if done:
            self.notes += [
                f"{site.hospital.name} set {site.line.set_aside} of {len(site.exams)} studies aside because they could not be "
                "proven clean or its policy excludes them; `fedpacs node status` tells the reasons."
                for site in self.sites
                if site.line.set_aside
            ]
        lines = [site.line for site in self.sites]
        return done, [(line.received, line.deidentified, line.set_aside, line.labelled) for line in lines]

    def approve(self) -> None:
        """Each hospital reads the project in plain words and approves its digest."""
        self.shown.phase("each hospital reads the project and approves its digest")
        self._at_each(self._approve)
        self.shown.refresh()

    def federate(self) -> float:
        """Wait for the last round; seconds from approval to the global model."""
        self.shown.phase("the federation trains")
        started = time.monotonic()
        suspects = [self.coordination.start(self.children), *self.nodes()]
        self.children.wait("the federation", self._trained, 2 * STALL_SECONDS, suspects)
        return time.monotonic() - started

    def _trained(self) -> tuple[bool, object]:
        for site in self.sites:
            site.refresh()
        self.shown.refresh()
        return self.coordination.done(), [(site.line.round, site.line.bytes_out) for site in self.sites]

    def compare(self, seconds: float) -> DemoResult:
        """The yardsticks and the judge; then the figures of every hospital's own books."""
        self.shown.phase(
            "yardsticks: the same network from each hospital alone, and from pooled images (simulation only)"
        )
        checkpoints = self.coordination.checkpoints()
        sites = [site.result() for site in self.sites]
        for site in self.sites:  # the nodes have done their part; their memory and cores go to the yardsticks
            site.stop(self.children)
        plan = compare.write_plan(self.folder, self.sites, self.coordination.job(), self.rounds, checkpoints)
        took = compare.train_yardsticks(self.children, plan)
        judged = compare.judge(self.children, plan)
        bytes_ = {"fedavg": sum(site.bytes_out for site in sites), "cds": sum(site.bytes_in for site in sites)}
        return DemoResult(
            sites=sites,
            algorithms=compare.algorithms(judged, {**took, "fedavg": seconds}, bytes_, self.rounds),
            curve=compare.curve(judged),
            held_out_patients=judged["patients"],
            notes=self.notes,
            seconds=time.monotonic() - self.started,
            project=self.coordination.summary(),
        )

    def example(self) -> BeforeAfter | None:
        """One study before and after, from the first hospital."""
        site = self.sites[0]
        candidates = sorted((site.folder / "dataset").rglob("*.dcm"))
        return before_after(site.sent_files()[-1], candidates)

    def _join(self, site: Site) -> None:
        site.init(self.children)
        self.coordination.enrol(self.children, site.hospital, site.config)

    def _approve(self, site: Site) -> None:
        self.coordination.approve_at(self.children, site.config, site.root / "project.txt", ADMIN)
        site.line.approved, site.line.rounds = True, self.rounds

    def _at_each(self, work: Callable[[Site], None]) -> None:
        """Do it at two hospitals at a time: they are different people. The first error is raised when all have ended."""
        with ThreadPoolExecutor(max_workers=2) as people:
            for done in [people.submit(work, site) for site in self.sites]:
                done.result()

    def nodes(self) -> list[Child]:
        return [site.node for site in self.sites if site.node is not None]

    def _give_first_hospital_a_pacs(self, http_port: int, dicom_port: int) -> None:
        missing = pacs.missing()
        first = self.sites[0]
        if missing:
            self.notes.append(f"{missing}, so every study of {first.hospital.name} came straight from the modality.")
            self.shown.say(f"{missing}; going on without it")
            return
        first.pacs = pacs.Pacs(first.root / "orthanc", http_port, dicom_port)
        first.by_pacs = BY_PACS
