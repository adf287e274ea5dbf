"""Exit codes, DICOM statuses, ports, metrics and variables: what the code has, the documentation names."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any, get_args

import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from aggregator_client.coordinator.settings import NetworkSettings
from aggregator_client.project import ProjectDocument
from dicom_node import conformance
from dicom_node.config import DicomSettings, WebSettings
from dicom_node.web.metrics import exposition
from tests.docs.documented import DOCS, ROOT

ROOMS = ("anonymizer", "dicom_node", "trainer", "aggregator_client")


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def rows(text: str) -> set[str]:
    """First cells of the tables."""
    return {cell.strip().strip("`") for cell in re.findall(r"^\|([^|]+)\|", text, re.MULTILINE)}


def exit_codes() -> set[int]:
    """Every value an `exit_code` is given, and every number in `typer.Exit(...)`."""
    found = {0, 1, 2, 130}
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if "exit_code" not in text and "Exit(" not in text:
                continue
            for node in ast.walk(ast.parse(text)):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                named = any(isinstance(t, ast.Name) and t.id == "exit_code" for t in targets)
                value = getattr(node, "value", None) if named else None
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "Exit":
                    values: list[Any] = [*node.args, *(keyword.value for keyword in node.keywords)]
                else:
                    values = [value]
                for one in values:
                    for leaf in ast.walk(one) if one is not None else ():
                        if isinstance(leaf, ast.Constant) and type(leaf.value) is int:
                            found.add(leaf.value)
    return found


def test_every_exit_code_is_explained_twice() -> None:
    codes = {str(code) for code in exit_codes()}
    assert codes >= {"3", "4", "5", "6", "7", "8", "9", "10"}
    for name in ("exit-codes.md", "troubleshooting.md"):
        told = {cell for cell in rows(page(name)) if cell.isdigit()}
        assert codes - {"0"} <= told, f"{name} lacks {codes - told}"
        assert told <= codes, f"{name} tells of {told - codes}, which no command ends with"


def test_every_dicom_status_is_explained() -> None:
    statuses = {f"0x{status:04X}" for status, *_ in conformance._STATUSES}
    assert len(statuses) >= 7
    for name in ("troubleshooting.md", "exit-codes.md"):
        assert not statuses - {cell.split()[0] for cell in rows(page(name)) if cell.split()}, name
    failures = set(re.findall(r"`(0x[0-9A-F]{4})`", page("conformance.md").split("## 5 C-STORE")[0]))
    assert failures and failures <= rows(page("troubleshooting.md")), failures


def test_the_firewall_table_has_the_ports_of_the_code() -> None:
    text = page("firewall.md")
    ports = {DicomSettings().port, WebSettings().port, NetworkSettings(address="x").port}
    for path in (ROOT / "aggregator_client" / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.arguments):
                named = [*node.posonlyargs, *node.args]
                for argument, default in zip(named[len(named) - len(node.defaults) :], node.defaults, strict=True):
                    if argument.arg == "port" and isinstance(default, ast.Constant):
                        ports.add(default.value)
    assert len(ports) == 5, ports
    told = {int(port) for port in re.findall(r"^\|[^|]+\| (\d+) \|", text, re.MULTILINE)}
    assert ports <= told
    assert told - ports == {104, 8042, 6514, 443}  # of other people's programs


def metrics() -> set[str]:
    pipeline = dict.fromkeys(
        ("receiving", "waiting", "deidentified", "excluded", "quarantined", "eligible", "withdrawn"), 0
    )
    counts = dict.fromkeys(("stored", "duplicate", "conflict", "quarantined", "bytes"), 0)
    status = {
        "pipeline": pipeline,
        "senders": [{"ae_title": "A", "not_taken": {"x": 1}, **counts}],
        "processes": {"web": {"running": True, "restarts": 0}},
        "disk": {"free_mb": 1, "refusing": False, "spool_bytes": 0},
        "oldest_waiting_s": None,
        "paused": False,
    }
    families = text_string_to_metric_families(exposition(status, 0, 0).decode())
    return {sample.name for family in families for sample in family.samples if not sample.name.endswith("_created")}


def test_every_metric_is_documented_and_no_other() -> None:
    assert {cell for cell in rows(page("monitoring.md")) if cell.startswith("fedpacs_")} == metrics()


def test_alerts_and_dashboard_use_metrics_that_exist() -> None:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/fedpacs.rules.yml").read_text())
    board = json.loads((ROOT / "deploy/grafana/fedpacs-node.json").read_text())
    alerts = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    shown = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    shown += [one["query"] for one in board["templating"]["list"]]
    assert len(alerts) >= 8 and len(shown) >= 10
    for expression in (*alerts, *shown):
        assert set(re.findall(r"\bfedpacs_\w+", expression)) <= metrics(), expression
    assert metrics() <= set(re.findall(r"\bfedpacs_\w+", " ".join(shown))), "a metric that the dashboard does not show"


def test_environment_variables_are_documented() -> None:
    inner = {"FEDPACS_PROCESS", "FEDPACS_OCR_THREADS"}  # between our own processes
    used: set[str] = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            used |= set(re.findall(r"[\"'](FEDPACS_[A-Z_]+)[\"']", path.read_text(encoding="utf-8")))
    assert used - inner <= rows(page("settings.md"))


def test_every_key_of_a_project_is_named() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in DOCS.glob("*.md"))

    def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
        for name, field in model.model_fields.items():
            parts = [field.annotation, *get_args(field.annotation)]
            nested = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
            for part in nested:
                yield from keys(part, f"{prefix}{name}.")
            if not nested:
                yield prefix + name

    found = set(keys(ProjectDocument))
    assert len(found) > 40
    assert not {key for key in found if not re.search(rf"\b{key.rpartition('.')[2]}\b", text)}
