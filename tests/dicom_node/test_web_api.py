"""The REST interfaces do what their OpenAPI descriptions say, whatever is asked: schemathesis over both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.python.asgi import shutdown_lifespans

from aggregator_client.coordinator.dashboard import runs
from aggregator_client.coordinator.dashboard.app import create_app as create_dashboard
from aggregator_client.coordinator.dashboard.app import token_file
from aggregator_client.coordinator.settings import CoordinatorConfig
from dicom_node.web import rest
from dicom_node.web.app import create_app
from tests.aggregator_client import test_evidence
from tests.dicom_node.test_worker import Bench

config, signed, folder = test_evidence.config, test_evidence.signed, test_evidence.folder
PROMISES = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 6


def check_all(app: Any, token: str) -> list[str]:
    """Ask every described operation with what its description allows and with what it forbids; -> the operations."""
    headers = {"Authorization": f"Bearer {token}", "Host": "localhost"}
    asked = []
    try:  # it starts the application itself
        schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)
        for result in schema.get_all_operations():
            operation = result.ok()
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                _ask(operation, mode, headers)
            asked.append(operation.label)
    finally:
        shutdown_lifespans()
    return asked


def _ask(operation: Any, mode: GenerationMode, headers: dict[str, str]) -> None:
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(mode))
    def asked(case: Any) -> None:
        case.call_and_validate(headers=headers, checks=PROMISES)

    try:
        asked()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, "an operation without parameters has nothing that could be wrong"


def test_the_nodes_interface_keeps_its_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path / "node")
    bench.send(1, 1)
    bench.run()
    # no person's project and no peer is behind invented values: these would only start processes and wait for networks
    monkeypatch.setattr(rest.projects, "decide", _unknown)
    monkeypatch.setattr(rest, "echo", _unknown)
    app = create_app(bench.config)
    asked = check_all(app, (bench.config.storage.keys / "api.token").read_text().strip())
    assert {"GET /status", "POST /optout", "POST /quarantine/release", "GET /training", "POST /echo"} <= set(asked)
    assert len(asked) >= 20


def test_the_dashboards_interface_keeps_its_description(
    config: CoordinatorConfig, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for action in ("start", "pause", "resume", "stop"):
        monkeypatch.setitem(runs._ACTIONS, action, lambda config, digest: None)
    app = create_dashboard(config, 8090)
    asked = check_all(app, token_file(config).read_text().strip())
    assert {"GET /runs", "POST /members/invite", "GET /privacy", "POST /runs/{digest}/{action}"} <= set(asked)


def _unknown(*args: object, **kwargs: object) -> None:
    from dicom_node.errors import InputError

    raise InputError("It is not known here: look it up.")
