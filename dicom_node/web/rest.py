"""The node's REST interface, described at GET /openapi.json.

GET  /status                         pipeline, senders, disk, oldest waiting study, processes, training, last error
GET  /studies?state=&limit=&offset=  de-identified studies with labels and rounds
GET  /projects                       projects and decisions; POST /projects/DIGEST/approve|reject|suspend|withdraw
GET  /egress?limit=&offset=          what left the hospital, newest first; GET /audit/verdict whether the log is whole
GET  /training                       the job under way, the rounds done here, drift, graphics cards
GET  /optout                         how many; POST /optout {"patient_id", "reason"}, POST /optout/remove
POST /pause {"reason"} · /resume · /echo {"peer"}
GET  /quarantine                     what is set aside; POST /quarantine/release, /quarantine/purge {"numbers", "reason"}
POST /accounts, /accounts/role, /accounts/remove
POST /orthanc/offer                  a hint of the plugin: {"studies": [ids], "everything": bool}
GET  /orthanc/studies/ID             state of one study of Orthanc; POST .../exclude|include
GET  /metrics                        Prometheus
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import Body, FastAPI, Path, Query, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from dicom_node import optout
from dicom_node.config import NodeConfig
from dicom_node.errors import RefusedError
from dicom_node.orthanc_reader.connect import wake_file
from dicom_node.pause import pause, resume
from dicom_node.quarantine import Quarantine
from dicom_node.scu import Peer, echo
from dicom_node.web import orthanc_study, projects, work
from dicom_node.web.api import Reason
from dicom_node.web.metrics import exposition
from dicom_node.web.security import Rights
from dicom_node.web.view import NodeView

_STUDY = r"/orthanc/studies/[^/]+"
_DIGEST = "[0-9a-f]{64}"
RIGHTS: Rights = (
    ("GET", "/status|/metrics", "viewer", "status"),
    ("GET", "/studies", "viewer", "studies"),
    ("GET", "/projects", "viewer", "projects"),
    ("GET", "/egress|/audit/verdict", "viewer", "egress"),
    ("GET", "/training", "viewer", "training"),
    ("GET", "/optout", "data-manager", "optout"),
    ("POST", "/optout(/remove)?", "data-manager", "optout"),
    ("POST", "/echo", "data-manager", "steer"),
    ("POST", "/pause|/resume", "admin", "steer"),
    ("POST", f"/projects/{_DIGEST}/(approve|reject|suspend|withdraw)", "admin", "decide"),
    ("GET", "/quarantine", "data-manager", "quarantine"),
    ("POST", "/quarantine/release", "data-manager", "quarantine"),
    ("POST", "/quarantine/purge", "admin", "quarantine"),
    ("POST", "/accounts|/accounts/(role|remove)", "admin", "accounts"),
    ("GET", _STUDY, "viewer", "orthanc"),
    ("POST", rf"/orthanc/offer|{_STUDY}/(exclude|include)", "data-manager", "orthanc"),
)

ORTHANC_ACTIONS = {"exclude": orthanc_study.exclude, "include": orthanc_study.include}

Digest = Annotated[str, Path(pattern=f"^{_DIGEST}$", description="A project's SHA-256.")]
OrthancId = Annotated[str, Path(pattern="^[0-9a-f]{8}(-[0-9a-f]{8}){4}$", description="Orthanc's id of a study.")]
Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=10**9)]


class Decision(Reason):
    role: str = Field(default="", max_length=100, description="In which role the person decides.")


class OptOutRequest(Reason):
    patient_id: str = Field(
        min_length=1, max_length=64, description="As the PACS shows it; kept as a keyed token only."
    )


class Numbers(Reason):
    numbers: list[Annotated[int, Field(ge=0, le=2**53)]] = Field(min_length=1, max_length=1000)


class EchoRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    peer: str = Field(default="", max_length=300, description="AETITLE@host:port; empty: this node itself.")
    tls: bool = Field(default=False, description="With the node's own TLS files, which [dicom] names.")


class NewAccount(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=64)
    role: str = Field(max_length=20)
    password: str = Field(max_length=500)


class AccountRole(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=64)
    role: str = Field(default="", max_length=20)


class Offer(BaseModel):
    """`studies` are Orthanc's ids."""

    model_config = ConfigDict(extra="forbid")
    studies: list[Annotated[str, Field(pattern="^[0-9a-f]{8}(-[0-9a-f]{8}){4}$")]] = Field(default=[], max_length=1000)
    everything: bool = False


def add_routes(app: FastAPI) -> None:
    """Add the routes; the app's state holds config, view, vault, optouts, audit, guard and verifier."""
    _add_reading(app)
    _add_changes(app)
    _add_quarantine(app)
    _add_accounts(app)
    _add_orthanc(app)


def _add_reading(app: FastAPI) -> None:
    @app.get("/health", tags=["status"])
    async def health() -> dict[str, Any]:
        """Whether the console answers; needs no token."""
        return {"status": "ok", "node": app.state.config.node.name}

    @app.get("/status", tags=["status"])
    async def status() -> dict[str, Any]:
        """Everything the home page shows."""
        facts: dict[str, Any] = app.state.view.status()
        return facts

    @app.get("/studies", tags=["studies"])
    async def studies(
        state: Annotated[Literal["eligible", "excluded", "withdrawn"] | None, Query()] = None,
        limit: Limit = 100,
        offset: Offset = 0,
    ) -> dict[str, Any]:
        """De-identified studies by the time they were added."""
        return {"studies": app.state.view.studies(state, limit, offset)}

    @app.get("/projects", tags=["projects"])
    async def list_projects() -> dict[str, Any]:
        """Projects offered here and what was decided."""
        return {"projects": app.state.view.projects()}

    @app.get("/egress", tags=["egress"])
    async def egress(limit: Limit = 200, offset: Offset = 0) -> dict[str, Any]:
        """What left the hospital, newest first."""
        view: NodeView = app.state.view
        return {"egress": view.egress(limit, offset), "total": view.egress_total()}

    @app.get("/audit/verdict", tags=["egress"])
    async def verdict() -> dict[str, Any]:
        """Walk the audit log's chain and say whether it is whole."""
        checked = await app.state.verifier.verdict(wait=True)
        return {**asdict(checked.verdict), "at": checked.at}

    @app.get("/training", tags=["training"])
    async def training() -> dict[str, Any]:
        """The job under way, and the rounds done here by project."""
        config: NodeConfig = app.state.config
        done = {one["digest"]: work.rounds(config, one["digest"]) for one in app.state.view.projects()}
        return {
            **work.now(config), "rounds": done, "drift": work.drift(config), "gpus": app.state.view.cards.latest(),
        }  # fmt: skip

    @app.get("/metrics", tags=["status"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """The status for Prometheus."""
        view: NodeView = app.state.view
        text = exposition(view.status(), view.egress_total()["bytes"], view.audit_head()["records"])
        return Response(text, media_type="text/plain; version=0.0.4")


def _add_changes(app: FastAPI) -> None:
    config: NodeConfig = app.state.config

    @app.post("/projects/{digest}/{decision}", tags=["projects"])
    async def decide(
        request: Request,
        digest: Digest,
        decision: Literal["approve", "reject", "suspend", "withdraw"],
        body: Annotated[Decision, Body()] = Decision(),
    ) -> dict[str, Any]:
        """Record a decision, signed with the node's key."""
        by = request.state.caller.name
        await asyncio.to_thread(projects.decide, config, digest, decision, by, body.role, body.reason)
        record = app.state.view.projects_table.get(digest)
        return {"digest": digest, "state": record.state, "by": record.decided_by}

    @app.get("/optout", tags=["optout"])
    async def optouts() -> dict[str, Any]:
        """How many patients opted out."""
        return {"optouts": len(app.state.optouts.list())}

    @app.post("/optout", tags=["optout"])
    async def opt_out(request: Request, body: OptOutRequest) -> dict[str, Any]:
        """Exclude a patient, with all past and future studies."""
        return {"withdrawn": optout.opt_out(config, body.patient_id, request.state.caller.name)}

    @app.post("/optout/remove", tags=["optout"])
    async def opt_in(request: Request, body: OptOutRequest) -> dict[str, Any]:
        """Take an opt-out back."""
        return {"readmitted": optout.opt_in(config, body.patient_id, request.state.caller.name)}

    @app.post("/pause", tags=["steer"])
    async def pause_node(request: Request, body: Annotated[Reason, Body()] = Reason()) -> dict[str, Any]:
        """Stop de-identification and training; receiving goes on."""
        return {"paused": True, "changed": pause(config, request.state.caller.name, body.reason)}

    @app.post("/resume", tags=["steer"])
    async def resume_node(request: Request, body: Annotated[Reason, Body()] = Reason()) -> dict[str, Any]:
        """Take a pause back."""
        return {"paused": False, "changed": resume(config, request.state.caller.name)}

    @app.post("/echo", tags=["steer"])
    async def verify(request: Request, body: Annotated[EchoRequest, Body()] = EchoRequest()) -> dict[str, Any]:
        """C-ECHO to a peer tells whether it knows us; to ourselves, whether our port answers."""
        dicom = config.dicom
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(dicom.host, dicom.host)
        own = not body.peer.strip()
        own_tls = dicom.tls_ca is not None and (own or body.tls)
        files = (
            {"tls_ca": dicom.tls_ca, "tls_certificate": dicom.tls_certificate, "tls_key": dicom.tls_key}
            if own_tls
            else {}
        )
        peer = Peer(dicom.ae_title, host, dicom.port, **files) if own else Peer.parse(body.peer.strip(), **files)
        app.state.audit.append("peer.echoed", peer=str(peer), by=request.state.caller.name)
        report = await asyncio.to_thread(echo, peer, dicom.ae_title)
        return {"said": f"{report.peer} answered C-ECHO in {report.echo_s * 1000:.0f} ms.", **report.__dict__}


def _add_quarantine(app: FastAPI) -> None:
    config: NodeConfig = app.state.config

    @app.get("/quarantine", tags=["quarantine"])
    async def set_aside() -> dict[str, Any]:
        """What is set aside, and why."""
        with Quarantine(config) as quarantine:
            return {"quarantine": [asdict(one) for one in quarantine.entries()]}

    @app.post("/quarantine/release", tags=["quarantine"])
    async def release(request: Request, body: Annotated[Numbers, Body()]) -> dict[str, Any]:
        """Send the studies of these once more through de-identification."""
        with Quarantine(config) as quarantine:
            return {"studies": quarantine.release(body.numbers, request.state.caller.name, body.reason)}

    @app.post("/quarantine/purge", tags=["quarantine"])
    async def purge(request: Request, body: Annotated[Numbers, Body()]) -> dict[str, Any]:
        """Erase these for good."""
        with Quarantine(config) as quarantine:
            return {"purged": quarantine.purge(body.numbers, request.state.caller.name, body.reason)}


def _add_accounts(app: FastAPI) -> None:
    accounts = app.state.guard.accounts

    @app.post("/accounts", tags=["accounts"])
    async def add(request: Request, body: Annotated[NewAccount, Body()]) -> dict[str, Any]:
        """Make an account; the first one must be an admin."""
        accounts.add(body.name, body.role, body.password, request.state.caller.name)
        return {"name": body.name, "role": body.role}

    @app.post("/accounts/role", tags=["accounts"])
    async def change(request: Request, body: Annotated[AccountRole, Body()]) -> dict[str, Any]:
        """Give an account another role."""
        accounts.change(body.name, request.state.caller.name, role=body.role)
        return {"name": body.name, "role": body.role}

    @app.post("/accounts/remove", tags=["accounts"])
    async def remove(request: Request, body: Annotated[AccountRole, Body()]) -> dict[str, Any]:
        """Remove an account."""
        accounts.remove(body.name, request.state.caller.name)
        return {"removed": body.name}


def _add_orthanc(app: FastAPI) -> None:
    config: NodeConfig = app.state.config

    @app.post("/orthanc/offer", tags=["orthanc"])
    async def offer(body: Annotated[Offer, Body()] = Offer()) -> dict[str, Any]:
        """Only a hint: the reader is woken, and what it should take it finds in Orthanc's own log."""
        if not config.orthanc.sources:
            raise RefusedError(f"{config.path}: [orthanc] url is not set, so this node follows no Orthanc; set it.")
        _touch(wake_file(config.storage.run))
        return {"noted": len(body.studies)}

    @app.get("/orthanc/studies/{orthanc_id}", tags=["orthanc"])
    async def study(orthanc_id: OrthancId) -> dict[str, Any]:
        """What became of one study of Orthanc."""
        return asdict(await orthanc_state(app, orthanc_id))

    @app.post("/orthanc/studies/{orthanc_id}/{action}", tags=["orthanc"])
    async def change(
        request: Request,
        orthanc_id: OrthancId,
        action: Literal["exclude", "include"],
        body: Annotated[Reason, Body()] = Reason(),
    ) -> dict[str, Any]:
        """Exclude the patient of this study from the federation, or take them back."""
        by = request.state.caller.name
        return {"studies": await asyncio.to_thread(ORTHANC_ACTIONS[action], config, orthanc_id, by)}


async def orthanc_state(app: FastAPI, orthanc_id: str) -> orthanc_study.StudyState:
    """The state of one study of Orthanc; asks Orthanc in a thread."""
    state = app.state
    study = await asyncio.to_thread(orthanc_study.fetch, state.config, orthanc_id)
    return orthanc_study.state(state.view, state.vault, state.optouts, orthanc_id, study)


def _touch(path: FilePath) -> None:
    path.touch()
    os.utime(path)
