"""What the plugin decides without Orthanc: settings, who a request comes from, which requests may change anything."""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st

SOURCE = Path(__file__).resolve().parents[2] / "plugin" / "fedpacs_plugin.py"


class FakeOrthanc(types.ModuleType):
    """The little of `orthanc` that an import of the plugin touches; the real one is used in test_plugin_in_orthanc."""

    def __init__(self, configuration: object) -> None:
        super().__init__("orthanc")
        self.lines: list[str] = []
        self.registered: dict[str, Any] = {}
        self.LogWarning = self.lines.append
        self.GetConfiguration = lambda: configuration if isinstance(configuration, str) else json.dumps(configuration)
        self.RegisterOnChangeCallback = lambda f: self.registered.setdefault("change", f)
        self.RegisterRestCallback = lambda path, f: self.registered.setdefault(path, f)
        self.ExtendOrthancExplorer = lambda js: self.registered.__setitem__("explorer", js)
        self.ChangeType = types.SimpleNamespace(ORTHANC_STARTED=1, ORTHANC_STOPPED=2, STABLE_STUDY=3, DELETED=4)
        self.ResourceType = types.SimpleNamespace(STUDY=1)


def load(configuration: object) -> tuple[Any, FakeOrthanc]:
    fake = FakeOrthanc(configuration)
    sys.modules["orthanc"] = fake
    try:
        spec = importlib.util.spec_from_file_location("fedpacs_plugin_under_test", SOURCE)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module, fake
    finally:
        del sys.modules["orthanc"]


@pytest.fixture(scope="module")
def plugin() -> Iterator[Any]:
    yield load({"Fedpacs": {"TokenFile": "/nonexistent"}})[0]


def test_good_settings_have_no_problem(plugin: Any) -> None:
    settings, problems = plugin.read_settings({"Fedpacs": {"TokenFile": "/t", "Url": "https://node.example:8443"}})
    assert problems == []
    assert settings["Url"] == "https://node.example:8443"


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ([], "must be an object"),
        ({"TokenFile": "/t", "Ulr": "x"}, "Fedpacs.Ulr is not a setting"),
        ({"TokenFile": 5}, "Fedpacs.TokenFile"),
        ({"TokenFile": "/t", "Enabled": "yes"}, "Fedpacs.Enabled must look like true"),
        ({"TokenFile": "/t", "TimeoutSeconds": 0}, "between 1 and 60"),
        ({"TokenFile": "/t", "TimeoutSeconds": True}, "Fedpacs.TimeoutSeconds must look like 10"),
        ({"TokenFile": "/t", "Url": "ftp://x"}, "Fedpacs.Url must start with"),
        ({"TokenFile": "/t", "Url": "http://192.0.2.7:8043"}, "unprotected"),
        ({}, "Fedpacs.TokenFile is not set"),
    ],
)
def test_each_wrong_setting_is_named(plugin: Any, section: object, named: str) -> None:
    _, problems = plugin.read_settings({"Fedpacs": section})
    assert any(named in problem for problem in problems), problems


@given_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["Enabled", "Url", "TokenFile", "CaFile", "TimeoutSeconds", "Other"]),
        st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()) | st.floats(allow_nan=False),
    )
)
def test_no_section_whatever_raises(section: dict[str, object]) -> None:
    settings, problems = _PLUGIN.read_settings({"Fedpacs": section})
    assert set(settings) == set(_PLUGIN.DEFAULTS)
    assert all(isinstance(problem, str) for problem in problems)


_PLUGIN, _ = load({"Fedpacs": {"TokenFile": "/nonexistent"}})


def basic(user: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:pw".encode()).decode()}


def test_the_user_is_taken_from_the_basic_header(plugin: Any) -> None:
    assert plugin.user_of(basic("dr.house")) == "dr.house"
    assert plugin.user_of(basic("a\r\nb c")) == "a__b_c", "nothing that could end a header line"
    assert plugin.user_of({}) == "anonymous"
    assert plugin.user_of({"authorization": "Basic !!!"}) == "anonymous"
    assert plugin.user_of({"authorization": "Bearer x"}) == "anonymous"


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"x-fedpacs": "1", "host": "h:1", "origin": "http://h:1", "sec-fetch-site": "same-origin"}, True),
        ({"x-fedpacs": "1", "host": "h:1"}, True),
        ({"host": "h:1", "origin": "http://h:1"}, False),
        ({"x-fedpacs": "1", "host": "h:1", "origin": "http://evil"}, False),
        ({"x-fedpacs": "1", "host": "h:1", "origin": "null"}, False),
        ({"x-fedpacs": "1", "host": "h:1", "sec-fetch-site": "cross-site"}, False),
        ({"x-fedpacs": "1", "host": "h:1", "sec-fetch-site": "same-site"}, False),
    ],
)
def test_only_our_own_page_may_change_anything(plugin: Any, headers: dict[str, str], allowed: bool) -> None:
    assert (plugin.foreign(headers) is None) is allowed


@pytest.mark.parametrize("configuration", ["not json", "[]", "null", {"Fedpacs": 3}])
def test_a_configuration_that_breaks_the_plugin_does_not_break_the_import(configuration: object) -> None:
    _, fake = load(configuration)
    assert len([line for line in fake.lines if line.startswith("fedpacs: ")]) >= 1


def test_switched_off_registers_nothing() -> None:
    module, fake = load({"Fedpacs": {"Enabled": False}})
    assert module.PLUGIN is None
    assert fake.registered == {}


def test_another_script_may_register_after_us() -> None:
    module, fake = load({"Fedpacs": {"TokenFile": "/t"}})
    seen: list[tuple[object, ...]] = []

    def broken(*_: object) -> None:
        raise ValueError("theirs")

    fake.RegisterOnChangeCallback(broken)
    fake.RegisterOnChangeCallback(lambda *event: seen.append(event))
    fake.ExtendOrthancExplorer("theirs();")
    fake.registered["change"](3, 1, "study")
    assert seen == [(3, 1, "study")], "the other script hears the event, past one that fails"
    assert module.PLUGIN.hints.studies == {"study"}, "and so do we"
    assert "fedpacs-button" in fake.registered["explorer"] and "theirs();" in fake.registered["explorer"]


def test_many_events_become_one_hint_to_look_at_everything() -> None:
    module, _ = load({"Fedpacs": {"TokenFile": "/t"}})
    for number in range(module.HINT_LIMIT + 10):
        module.PLUGIN.on_change(3, 1, f"study{number}")
    assert len(module.PLUGIN.hints.studies) == module.HINT_LIMIT
    assert module.PLUGIN.hints.everything


def test_the_plugin_needs_the_standard_library_and_orthanc_only() -> None:
    import ast

    names = set()
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    assert names - {"orthanc"} <= sys.stdlib_module_names
