"""The walls of the house: which room may import which, and where the heavy or foreign libraries may stand."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("plugin", "anonymizer", "dicom_node", "trainer", "aggregator_client")

# room → modules of other rooms it may import (a prefix stands for everything below it)
ALLOWED = {
    "plugin": (),
    "anonymizer": (),
    "dicom_node": ("anonymizer",),
    "trainer": ("dicom_node.records",),
    "aggregator_client": (
        "trainer",
        "dicom_node.records",
        "dicom_node.config",
        "dicom_node.audit",
        "dicom_node.projects",
        "dicom_node.errors",
        "dicom_node.logs",
        "dicom_node.supervise",
        "dicom_node.service",
        "dicom_node.status",
        "dicom_node.pause",
        "dicom_node.database",
        "dicom_node.backup",
        "dicom_node.cli.backup",
        "dicom_node.cli.output",
        "dicom_node.cli.people",
        "dicom_node.accounts",
        "dicom_node.web.api",
        "dicom_node.web.events",
        "dicom_node.web.login",
        "dicom_node.web.oidc",
        "dicom_node.web.security",
        "dicom_node.web.words",
    ),
    # The demo and the coordinator's yardsticks stand in for a hospital's staff: they may see the whole node.
    "aggregator_client.demo": ("trainer", "dicom_node", "anonymizer"),
}


def modules(room: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / room).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> Iterator[str]:
    """Every absolute module name a file imports, wherever in the file it does so."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:  # a relative import cannot leave its room
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_to_their_left(room: str) -> None:
    wrong = []
    for module, path in modules(room):
        allowed = ALLOWED["aggregator_client.demo"] if within(module, "aggregator_client.demo") else ALLOWED[room]
        for name in imports(path):
            foreign = any(within(name, other) for other in ROOMS if other != room)
            # `from dicom_node import records` shows as dicom_node and as dicom_node.records: the longer one decides
            if foreign and name not in ROOMS and not any(within(name, one) for one in allowed):
                wrong.append(f"{module} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_node_side_never_imports_the_coordinator() -> None:
    side = ("aggregator_client.coordinator", "aggregator_client.cli", "aggregator_client.demo")
    wrong = [
        f"{module} imports {name}"
        for module, path in modules("aggregator_client")
        if not any(within(module, one) for one in side)
        for name in imports(path)
        if any(within(name, one) for one in side)
    ]
    assert not wrong, "\n".join(wrong)


def users(library: str) -> set[str]:
    return {
        module
        for room in ROOMS
        for module, path in modules(room)
        if any(within(name, library) for name in imports(path))
    }


def test_flower_stands_in_at_most_three_files() -> None:
    assert 1 <= len(users("flwr")) <= 3, users("flwr")


def test_orthanc_is_imported_by_the_plugin_alone() -> None:
    assert all(within(module, "plugin") for module in users("orthanc")), users("orthanc")


def test_torch_stays_in_the_trainer() -> None:
    rooms = ("trainer", "aggregator_client.coordinator", "aggregator_client.demo")
    assert all(any(within(module, room) for room in rooms) for module in users("torch")), users("torch")


def test_the_plugin_is_standard_library_and_orthanc_only() -> None:
    import sys

    for module, path in modules("plugin"):
        for name in imports(path):
            top = name.split(".")[0]
            own = top.startswith("fedpacs_")  # the files of the script folder
            assert own or top in sys.stdlib_module_names or top in ("orthanc", "__future__"), f"{module} imports {name}"


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        module
        for room in ROOMS
        for module, path in modules(room)
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent, silent
