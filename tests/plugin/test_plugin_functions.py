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
    if str(SOURCE.parent) not in sys.path:  # Orthanc puts the script's folder there
        sys.path.append(str(SOURCE.parent))
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
        ({"TokenFile": "/t", "Url": "http://127.0.0.1:x"}, "Fedpacs.Url must start with"),
        ({"TokenFile": "/t", "Offer": {"Modality": ["CT"]}}, "Fedpacs.Offer.Modality is not a setting"),
        ({"TokenFile": "/t", "Offer": {"Modalities": "CT"}}, "Fedpacs.Offer.Modalities must look like []"),
        ({"TokenFile": "/t", "Offer": {"Modalities": [1]}}, "Fedpacs.Offer.Modalities must be a list of texts"),
        ({"TokenFile": "/t", "Offer": {"Metadata": {"Consent": 1}}}, "Fedpacs.Offer.Metadata must be"),
        ({"TokenFile": "/t", "Offer": {"MinAgeDays": 9, "MaxAgeDays": 3}}, "larger than MaxAgeDays"),
        ({"TokenFile": "/t", "Offer": {"MaxAgeDays": -1}}, "Fedpacs.Offer.MaxAgeDays must look like 0"),
        ({"TokenFile": "/t", "Hours": ["7pm-6am"]}, "Fedpacs.Hours must be windows"),
        ({"TokenFile": "/t", "Roles": {"alice": "root"}}, "Fedpacs.Roles must give each user"),
        (
            {"TokenFile": "/t", "MoreNodes": [{"Url": "http://127.0.0.1:1"}]},
            "Fedpacs.MoreNodes (1).TokenFile is not set",
        ),
    ],
)
def test_each_wrong_setting_is_named(plugin: Any, section: object, named: str) -> None:
    _, problems = plugin.read_settings({"Fedpacs": section})
    assert any(named in problem for problem in problems), problems


_LEAF = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
_NAMES = st.sampled_from(["Url", "TokenFile", "Modalities", "Metadata", "MaxAgeDays", "alice", "*"]) | st.text()
_ANYTHING = st.recursive(_LEAF, lambda inner: st.lists(inner) | st.dictionaries(_NAMES, inner), max_leaves=8)


@given_settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "Offer",
                "Hours",
                "Roles",
                "MoreNodes",
                "MegabytesPerSecond",
                "Enabled",
                "Url",
                "TokenFile",
                "TimeoutSeconds",
                "Other",
            ]
        ),
        _ANYTHING,
    )
)
def test_no_section_whatever_raises(section: dict[str, object]) -> None:
    settings, problems = _PLUGIN.read_settings({"Fedpacs": section})
    assert set(settings) == set(sys.modules["fedpacs_settings"].DEFAULTS)
    json.dumps(_PLUGIN.rules(settings, problems))
    assert _PLUGIN.role_of(settings, "alice") in ("viewer", "data-manager", "admin")
    assert all(isinstance(problem, str) for problem in problems)


_PLUGIN, _ = load({"Fedpacs": {"TokenFile": "/nonexistent"}})


def test_roles_are_given_by_name_then_by_star_and_wrong_ones_give_none(plugin: Any) -> None:
    settings, _ = plugin.read_settings({"Fedpacs": {"Roles": {"alice": "admin", "*": "data-manager"}}})
    assert [plugin.role_of(settings, user) for user in ("alice", "bob", "anonymous")] == [
        "admin",
        "data-manager",
        "viewer",
    ]
    wrong, _ = plugin.read_settings({"Fedpacs": {"Roles": {"alice": "root"}}})
    assert plugin.role_of(wrong, "alice") == "viewer"
    default, _ = plugin.read_settings({})
    assert [plugin.role_of(default, user) for user in ("alice", "anonymous")] == ["admin", "viewer"]


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
    for node in (n for path in SOURCE.parent.glob("*.py") for n in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    own = {path.stem for path in SOURCE.parent.glob("fedpacs_*.py")}
    assert names - {"orthanc"} - own <= sys.stdlib_module_names
