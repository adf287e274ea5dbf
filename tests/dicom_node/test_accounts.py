"""Accounts: passwords, roles, sessions that end, lock-out, tokens for scripts; every change in the audit log."""

from __future__ import annotations

import io
import json
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dicom_node.accounts import (
    DASHBOARD_ROLES,
    IDLE_SECONDS,
    LOCK_AFTER,
    LOCK_SECONDS,
    ROLES,
    SESSION_SECONDS,
    Account,
    Accounts,
)
from dicom_node.audit import AuditLog
from dicom_node.cli import run
from dicom_node.config import load_config
from dicom_node.errors import InputError, RefusedError
from dicom_node.setup import write_default_config

GOOD = "correct horse battery"


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> list[tuple[str, dict[str, object]]]:
    return []


@pytest.fixture
def accounts(tmp_path: Path, clock: Clock, told: list[tuple[str, dict[str, object]]]) -> Iterator[Accounts]:
    made = Accounts(tmp_path / "accounts.db", lambda kind, **facts: told.append((kind, facts)), clock)
    made.add("Ada", "admin", GOOD, "root")
    yield made
    made.close()


def test_the_right_password_opens_a_session_that_says_who(accounts: Accounts, tmp_path: Path) -> None:
    token = accounts.log_in("Ada", GOOD)
    assert accounts.session(token) == Account("Ada", "admin")
    assert accounts.session(token + "x") is None and accounts.session("") is None
    accounts.log_out(token)
    assert accounts.session(token) is None
    for file in tmp_path.glob("accounts.db*"):
        data = file.read_bytes()
        assert GOOD.encode() not in data and token.encode() not in data
    assert stat.S_IMODE((tmp_path / "accounts.db").stat().st_mode) == 0o600


def test_a_wrong_name_and_a_wrong_password_are_told_in_the_same_words(
    accounts: Accounts, told: list[tuple[str, dict[str, object]]]
) -> None:
    with pytest.raises(RefusedError) as unknown:
        accounts.log_in("my-secret-password-typed-as-name", GOOD)
    with pytest.raises(RefusedError) as wrong:
        accounts.log_in("Ada", GOOD + "x")
    assert str(unknown.value) == str(wrong.value)
    assert [kind for kind, _ in told] == ["account.added", "login.refused", "login.refused"]
    assert "secret" not in repr(told) and GOOD not in repr(told)


def test_too_many_wrong_passwords_lock_the_account_for_a_while(accounts: Accounts, clock: Clock) -> None:
    for _ in range(LOCK_AFTER):
        with pytest.raises(RefusedError, match="wrong"):
            accounts.log_in("Ada", "wrong password")
    with pytest.raises(RefusedError, match="locked for 15 more minutes"):
        accounts.log_in("Ada", GOOD)
    assert accounts.all()[0]["locked"]
    clock.now += LOCK_SECONDS + 1
    assert accounts.session(accounts.log_in("Ada", GOOD))
    for _ in range(LOCK_AFTER - 1):
        with pytest.raises(RefusedError):
            accounts.log_in("Ada", "wrong password")
    assert accounts.log_in("Ada", GOOD), "a right one in between starts the count again"


def test_a_session_ends_when_idle_and_in_any_case(accounts: Accounts, clock: Clock) -> None:
    idle, busy = accounts.log_in("Ada", GOOD), accounts.log_in("Ada", GOOD)
    began = clock.now
    while clock.now < began + SESSION_SECONDS - IDLE_SECONDS:
        clock.now += IDLE_SECONDS - 1
        assert accounts.session(busy)
    assert accounts.session(idle) is None
    clock.now = began + SESSION_SECONDS + 1
    assert accounts.session(busy) is None


def test_a_new_role_or_password_ends_sessions(accounts: Accounts) -> None:
    accounts.add("Bo", "viewer", GOOD, "Ada")
    token = accounts.log_in("Bo", GOOD)
    accounts.change("Bo", "Ada", role="data-manager")
    assert accounts.session(token) is None
    token = accounts.log_in("Bo", GOOD)
    assert accounts.session(token) == Account("Bo", "data-manager")
    accounts.change("Bo", "Ada", password=GOOD + "2")
    assert accounts.session(token) is None
    with pytest.raises(RefusedError):
        accounts.log_in("Bo", GOOD)
    token = accounts.log_in("Bo", GOOD + "2")
    accounts.remove("Bo", "Ada")
    assert accounts.session(token) is None


def test_there_is_always_an_admin(accounts: Accounts) -> None:
    with pytest.raises(RefusedError, match="last admin"):
        accounts.remove("Ada", "Ada")
    with pytest.raises(RefusedError, match="last admin"):
        accounts.change("Ada", "Ada", role="viewer")
    accounts.change("Ada", "Ada", role="admin", password=GOOD + "3")
    accounts.add("Bo", "admin", GOOD, "Ada")
    accounts.remove("Ada", "Bo")
    assert [one["name"] for one in accounts.all()] == ["Bo"]


def test_a_script_has_a_token_with_a_role(accounts: Accounts) -> None:
    token = accounts.add_token("prometheus", "viewer", "Ada")
    assert accounts.token(token) == Account("prometheus", "viewer") and accounts.token("x") is None
    assert accounts.session(token) is None, "a token is no session"
    with pytest.raises(RefusedError):
        accounts.add_token("prometheus", "admin", "Ada")
    accounts.remove_token("prometheus", "Ada")
    assert accounts.token(token) is None
    with pytest.raises(RefusedError):
        accounts.remove_token("prometheus", "Ada")


@pytest.mark.parametrize(
    ("name", "role", "password"),
    [("", "viewer", GOOD), (" x", "viewer", GOOD), ("a\nb", "viewer", GOOD), ("a:b", "viewer", GOOD), ("n" * 65, "viewer", GOOD),
     ("Bo", "king", GOOD), ("Bo", "viewer", "short")],
)  # fmt: skip
def test_what_is_no_account_is_refused(accounts: Accounts, name: str, role: str, password: str) -> None:
    with pytest.raises(InputError):
        accounts.add(name, role, password, "Ada")
    assert len(accounts.all()) == 1
    with pytest.raises(RefusedError):
        accounts.add("Ada", "viewer", GOOD, "x")


@given(st.text(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_made_up_token_is_anything(accounts: Accounts, token: str) -> None:
    assert accounts.session(token) is None and accounts.token(token) is None


def test_a_role_may_what_those_before_it_may() -> None:
    for roles in (ROLES, DASHBOARD_ROLES):
        for have, role in enumerate(roles):
            assert [Account("x", role).may(other) for other in roles] == [have >= want for want in range(len(roles))]


def test_the_command_makes_accounts_and_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_default_config(tmp_path / "node")
    secret = tmp_path / "password"
    secret.write_text(GOOD + "\n")

    def call(*words: str) -> int:
        return run(["node", "account", *words, "--config", str(config)])

    first = ("add", "Ada", "--password-file", str(secret), "--by", "root")
    assert call(*first) == 4 and "first account must be an admin" in capsys.readouterr().err
    assert call(*first, "--role", "admin") == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(GOOD + "\n"))
    assert call("add", "Bo", "--password-file", "-") == 0
    assert call("role", "Bo", "--role", "data-manager") == 0
    assert call("token", "prometheus") == 0
    token = capsys.readouterr().out.split()[-1]
    assert call("list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["role"]) for one in listed["accounts"]] == [("Ada", "admin"), ("Bo", "data-manager")]
    assert [one["name"] for one in listed["tokens"]] == ["prometheus"] and token not in json.dumps(listed)
    storage = load_config(config).storage
    with closing(Accounts(storage.accounts)) as accounts:
        assert accounts.session(accounts.log_in("Bo", GOOD)) == Account("Bo", "data-manager")
        assert accounts.token(token) == Account("prometheus", "viewer")
    assert call("token", "prometheus", "--remove") == 0 and call("remove", "Bo") == 0
    assert call("remove", "Ada") != 0 and "last admin" in capsys.readouterr().err
    with closing(AuditLog(storage.audit)) as audit:
        kinds = [record.kind for record in audit.records() if record.kind.startswith(("account", "token"))]
    assert kinds == ["account.added"] * 2 + ["account.changed", "token.added", "token.removed", "account.removed"]
