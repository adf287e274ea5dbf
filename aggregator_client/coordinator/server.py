"""Runs a project from the coordinator's folder: opens the hub, walks through the rounds, keeps everything on disk.

`run` is what `fedpacs coordinator run` and `resume` call. Killed at any moment and resumed, a run goes on at the round it was
in, asks only the sites whose updates it has not kept yet, and ends with the same model.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from aggregator_client.coordinator import reference, settings, summing, voting
from aggregator_client.coordinator.gathering import Gathering, as_update
from aggregator_client.coordinator.reference import Outputs, Reference
from aggregator_client.coordinator.rounds import Step, is_stale, next_step
from aggregator_client.coordinator.settings import CoordinatorConfig
from aggregator_client.coordinator.state import RunFacts, RunState
from aggregator_client.coordinator.strategies import Strategy, choose
from aggregator_client.coordinator.strategies.ensemble import Ensemble
from aggregator_client.coordinator.strategies.split import Split
from aggregator_client.errors import FederationError, ProjectError, RefusedError, TooFewSitesError
from aggregator_client.keys import CoordinatorKeys, tidy
from aggregator_client.messages import Message
from aggregator_client.project import SignedProject
from aggregator_client.roster import Member, Members
from aggregator_client.rotation import lineage
from aggregator_client.transport import Hub
from trainer import networks, weights

GRACE_SECONDS = 30.0
PAUSED = "paused"  # a file of this name in the run's folder pauses it, also over a restart
KINDS = {Step.ROUND: "train", Step.EVALUATE: "evaluate", Step.PREDICT: "predict", Step.DELIVER: "deliver"}
Progress = Callable[[Mapping[str, Any]], None]


class Run:
    """One run of one project over a hub. `progress` is told of every event as a mapping with "event"."""

    def __init__(
        self,
        project: SignedProject,
        members: list[Member],
        keys: CoordinatorKeys,
        hub: Hub,
        state: RunState,
        progress: Progress | None = None,
        grace_s: float = GRACE_SECONDS,
        references: Path = Path("reference"),
        roster: Members | None = None,
    ) -> None:
        self.roster = roster
        self.project, self.document = project, project.document
        self.members = {member.name: member for member in members}
        self.keys, self.hub, self.state = keys, hub, state
        self.tell: Progress = progress or (lambda facts: None)
        self.grace_s = min(grace_s, self.document.deadline_s)
        self.strategy: Strategy = choose(self.document.algorithm.name, self.document.algorithm.args)
        self.summed = self.document.privacy.summed
        self.ensemble, self.references = isinstance(self.strategy, Ensemble), references
        if isinstance(self.strategy, Ensemble) and self.strategy.distil and self.document.task.name != "classification":
            raise ProjectError("A student is distilled for classification only: set the algorithm's distil to 0.")
        if len(self.members) < self.document.min_sites:
            raise TooFewSitesError(
                f"The project asks for {self.document.min_sites} sites and {len(self.members)} are enrolled: invite more, or sign"
                " a version that asks for fewer."
            )

    # -- the walk -----------------------------------------------------------------------------------------------------

    def go(self) -> None:
        """Walk to the end. Raises TooFewSitesError when a round stays short; the run can then be resumed."""
        facts = self.state.run()
        if facts is None:
            document = self.document
            facts = self.state.start(self.project.digest, document.name, document.algorithm.name, document.rounds)
        self.facts: RunFacts = facts
        self.state.set_state("running")
        self.hub.start_run()
        try:
            while (step := self._next())[0] is not Step.DONE:
                self._wait_while_paused()
                self._do(*step)
        except FederationError as error:
            self.state.set_state("stopped", str(error))
            self.tell({"event": "stopped", "reason": str(error)})
            raise
        self.state.set_state("finished")
        self.tell({"event": "finished", "rounds": self.document.rounds})

    def _wait_while_paused(self) -> None:
        """Begin no further round while somebody has paused the run; the round under way was finished."""
        file = self.state.folder / PAUSED
        if not file.exists():
            return
        self.state.set_state("paused")
        self.tell({"event": "paused"})
        while file.exists():
            time.sleep(0.2)
        self.state.set_state("running")
        self.tell({"event": "resumed"})

    def _next(self) -> tuple[Step, int]:
        rounds, stop = self.document.rounds, self.document.stop
        ended = {facts.number for facts in self.state.rounds() if facts.state == "evaluated"}
        stale = is_stale(self.state.model_scores(), stop.patience, stop.min_gain)
        more = [(Step.PREDICT, rounds + 2 in ended), (Step.DELIVER, rounds + 3 in ended)] if self.ensemble else []
        return next_step(rounds, self.state.last_checkpoint(), rounds + 1 in ended, stale, more)

    def _do(self, step: Step, number: int) -> None:
        self.state.open_round(number)
        if step is Step.START:
            network = self.document.network
            self.state.close_round(0, networks.initial_weights(network.name, network.args, self.document.seed))
            return
        started = time.monotonic()
        last = self.state.last_checkpoint()
        model = self.state.model(last)
        self.strategy.restore(self.state.strategy_state(last))
        sites = sorted(self.members)
        training = step is Step.ROUND
        if training:
            voting.require_hope(self.state, self.document)
        chosen = self.strategy.participants(number, sites, self.state.site_scores()) if training else sites
        self.tell(
            {"event": "round", "round": number, "rounds": self.document.rounds, "step": str(step), "sites": chosen}
        )
        if training and isinstance(self.strategy, Split):
            from aggregator_client.coordinator import splitting  # torch, for this algorithm alone

            merged, trained = splitting.train(self, number, model, chosen)
            self._close(number, merged, trained, started)
            return
        gather = Gathering(self, KINDS[step], number, chosen, model, self._parts(step)).wait()
        if step is Step.PREDICT:
            self._combine(number, sorted(gather.accepted))
        if not training:
            self.state.end_evaluation(number)
            return
        trained = sorted(gather.accepted)
        merged = (
            summing.aggregate(self, number, model, trained) if self.summed else self._aggregate(number, model, trained)
        )
        if self.document.vote_share:
            merged = voting.decided(self, number, model, merged, trained)
        self._close(number, merged, trained, started)

    def _close(self, number: int, merged: weights.Weights, trained: list[str], started: float) -> None:
        self.state.close_round(number, merged, self.strategy.state())
        if self.summed:
            summing.forget(self)
        seconds = round(time.monotonic() - started, 2)
        self.tell({"event": "checkpoint", "round": number, "seconds": seconds, "sites": trained})

    # -- an ensemble's last steps -------------------------------------------------------------------------------------

    def member(self, site: str, told: Sequence[Any] = ()) -> Member:
        """The site with its present keys, which `told` may introduce. Raises RefusedError when it was revoked."""
        if self.roster is not None:
            self.members[site] = self.roster.introduced(site, told)
        return self.members[site]

    def understand(self, site: str, message: Message) -> Outputs:
        """What a site says about the reference studies. Raises MessageError when that is no whole answer."""
        return self._reference().outputs(site, message)

    @cache  # noqa: B019 - one run a process, and reading the studies again for every answer would take long
    def _reference(self) -> Reference:
        return Reference(self.document, reference.load(self.references, self.document))

    def _parts(self, step: Step) -> dict[str, bytes] | None:
        if step is Step.PREDICT:
            files = reference.load(self.references, self.document)
            return {digest: file.read_bytes() for digest, file in files.items()}
        if step is Step.DELIVER:
            made = sorted(file for file in (self.state.folder / "ensemble").iterdir() if file.is_file())
            return {file.name: file.read_bytes() for file in made}
        return None

    def _combine(self, number: int, sites: list[str]) -> None:
        """Write the ensemble's outputs, and the student's model when the project asks for one."""
        assert isinstance(self.strategy, Ensemble)
        answers = {site: self.state.update(number, site) for site in sites}
        said = {site: self.understand(site, message) for site, message in answers.items() if message is not None}
        scores = self.state.site_scores().get(self.document.rounds + 1, {})
        folder = self.state.folder / "ensemble"
        if folder.exists():
            shutil.rmtree(folder)
        studies = self._reference()
        studies.write(folder, said, self.strategy.combine, scores)
        if self.strategy.distil:
            studies.distil(folder, said, self.strategy, scores)
        self.tell({"event": "combined", "round": number, "sites": sorted(said), "folder": str(folder)})

    def _aggregate(self, number: int, model: weights.Weights, sites: list[str]) -> weights.Weights:
        """The next model, one update in memory at a time, in the order of the sites' names."""
        self.strategy.begin(model)
        for site in sites:
            message = self.state.update(number, site)
            if message is not None:
                self.strategy.add(as_update(site, message, model, self.strategy, self.document))
        return self.strategy.finish()


def run(coordinator: Path, project: Path, resume: bool = False, progress: Progress | None = None) -> dict[str, Any]:
    """Run a signed project, or go on with it. Returns {"digest", "rounds", "folder", "model", "sha256"}.

    Raises FederationError: RefusedError when this project was begun (without `resume`), never begun (with it), is another
    coordinator's, or is being run by another process; TooFewSitesError when a round stays short.
    """
    config = settings.load(coordinator)
    signed = SignedProject.read(project)
    keys = config.keys()
    tidy(config.storage.keys)
    if signed.document.coordinator.signing_key not in {pair.signing for pair in lineage(keys)}:
        raise RefusedError(
            f"The project {signed.document.name} is signed by another coordinator: sign it with this one's keys."
        )
    folder = config.run_folder(signed.digest)
    with _alone(folder):
        state = RunState(folder)
        try:
            _may(state, signed, resume)
            (folder / "project.json").write_bytes(signed.file_bytes())
            hub = _hub(config)
            try:
                for member in config.members.list():
                    hub.register(member.name, member.flower_public)
                Run(
                    signed,
                    config.members.list(),
                    keys,
                    hub,
                    state,
                    progress,
                    references=config.root / "reference",
                    roster=config.members,
                ).go()
            finally:
                hub.close()
            return _summary(signed, state)
        finally:
            state.close()


def _hub(config: CoordinatorConfig) -> Hub:
    from aggregator_client.coordinator.flower_hub import FlowerHub, Tls  # Flower takes seconds to import

    files = config.tls
    tls = Tls(files.certificate, files.key, files.authority)
    return FlowerHub(config.root / "superlink", tls, config.network.listen, config.network.port)


def _may(state: RunState, signed: SignedProject, resume: bool) -> None:
    facts = state.run()
    if resume and facts is None:
        raise RefusedError(
            f"The project {signed.document.name} was not begun here: start it with `fedpacs coordinator run`."
        )
    if not resume and facts is not None:
        done = facts.state == "finished"
        raise RefusedError(
            f"The project {signed.document.name} (digest {signed.digest[:12]}) was "
            + (
                "run to its end here: sign a new version to run it again."
                if done
                else "begun here: `fedpacs coordinator resume`."
            )
        )


def _summary(signed: SignedProject, state: RunState) -> dict[str, Any]:
    kept = state.kept_model(signed.document.stop.keep)
    facts = next(one for one in state.rounds() if one.number == kept)
    return {
        "digest": signed.digest,
        "rounds": state.last_checkpoint(),
        "kept": kept,
        "folder": str(state.folder),
        "model": str(state.checkpoint_file(kept)),
        "sha256": facts.sha256,
    }


def _lock(descriptor: int) -> None:
    """Raises BlockingIOError. Whoever only looks (overview.is_running) holds the lock for a moment: that is waited out."""
    end = time.monotonic() + 1.0
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process runs a project: an flock, which the kernel lets go of when the process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _lock(descriptor)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())  # for whoever wants to stop it
        yield
    except BlockingIOError:
        raise RefusedError(f"Another process runs the project in {folder}: wait for it or stop it.") from None
    finally:
        os.close(descriptor)
