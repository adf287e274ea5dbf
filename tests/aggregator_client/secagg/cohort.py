"""A cohort for tests and benchmarks: sites with real keys and journals, and a coordinator that loses sites where it is told."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aggregator_client.secagg.client import Charter, SecureClient
from aggregator_client.secagg.journal import Journal
from aggregator_client.secagg.ring import LIMBS
from aggregator_client.secagg.server import SecureServer, Total
from aggregator_client.secagg.transcript import Plan

STAGES = ("advert", "shares", "masked", "agree", "unmask")
Change = Callable[[str, str, Any], Any]


class Cohort:
    """`count` sites named a00, a01, ...; `change(stage, site, answer)` may replace what a site sends."""

    def __init__(
        self, folder: Path, count: int = 5, size: int = 100, bits: int = 32, clip: float = 1.0, cap: int = 1000
    ):
        self.names = [f"a{index:02d}" for index in range(count)]
        self.coordinator = Ed25519PrivateKey.generate()
        self.keys = {name: Ed25519PrivateKey.generate() for name in self.names}
        self.journals = {name: Journal(folder / name) for name in self.names}
        self.folder, self.size = folder, size
        self.members = {name: key.public_key().public_bytes_raw() for name, key in self.keys.items()}
        self.charter = Charter("p" * 64, self.members, 3, bits, clip, cap)  # type: ignore[arg-type]
        generator = np.random.default_rng(count)
        self.values = {n: generator.uniform(-clip, clip, size).astype(np.float32) for n in self.names}
        self.weights = {name: int(generator.integers(1, cap + 1)) for name in self.names}

    def plan(self, number: int = 1, base: str | None = None, **changes: Any) -> bytes:
        base = base or hashlib.sha256(b"model %d" % number).hexdigest()
        terms = {"bits": self.charter.bits, "clip": self.charter.clip, "weight_cap": self.charter.weight_cap}
        facts = {
            "project": self.charter.project,
            "run": "run",
            "round": number,
            "nonce": os.urandom(16).hex(),
            "base": base,
            "members": self.members,
            "dimension": self.size + LIMBS,
        }
        return Plan(**(facts | terms | changes)).signed(self.coordinator).encode()

    def client(self, name: str, plan: bytes) -> SecureClient:
        """A new one each time, as after a restart."""
        public = self.coordinator.public_key().public_bytes_raw()
        return SecureClient(name, self.keys[name], public, self.charter, plan, self.journals[name])

    def server(self, plan: bytes) -> SecureServer:
        return SecureServer(plan, self.coordinator)

    def go(
        self,
        plan: bytes | None = None,
        lost: Mapping[str, str] | None = None,
        change: Change = lambda stage, site, answer: answer,
        until: str = "",
    ) -> Total | SecureServer:
        """Walk through the stages; `lost`: the stage before whose answer a site is gone."""
        plan = plan or self.plan()
        server, lost = self.server(plan), lost or {}

        def asked(stage: str, sites: list[str]) -> list[str]:
            gone = STAGES.index(stage)
            return [
                site for site in sites if STAGES.index(lost.get(site, "unmask")) >= gone and lost.get(site) != stage
            ]

        for site in asked("advert", self.names):
            server.take_advert(site, change("advert", site, self.client(site, plan).advert()))
        adverts = server.adverts()
        for site in asked("shares", list(server.circle.roster)):
            server.take_shares(site, change("shares", site, self.client(site, plan).shares(adverts)))
        if until == "shares":
            return server
        for site in asked("masked", server.dealers):
            answer = self.client(site, plan).masked(server.dealt(site), self.values[site], self.weights[site])
            server.take_masked(site, *change("masked", site, answer))
        survivors = server.survivors()
        if until == "masked":
            return server
        for site in asked("agree", server.surviving):
            server.take_agreement(site, change("agree", site, self.client(site, plan).agree(survivors)))
        agreements = server.agreements()
        for site in asked("unmask", server.agreeing):
            server.take_reveal(site, change("unmask", site, self.client(site, plan).unmask(agreements)))
        return server.finish()

    def close(self) -> None:
        for journal in self.journals.values():
            journal.close()
