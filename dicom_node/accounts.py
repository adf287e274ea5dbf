"""Local accounts of a console: names, roles, Argon2id passwords, sessions that end, lock-out, and tokens for scripts.

One SQLite file beside the keys. Passwords are kept as Argon2id PHC strings (RFC 9106), session and script tokens as SHA-256
of 256 random bits. Nothing here knows the web: `dicom_node.web.security` turns cookies and headers into these calls.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from sqlite_utils.migrations import Migrations

from dicom_node.database import connect, transaction
from dicom_node.errors import InputError, RefusedError

ROLES = ("viewer", "data-manager", "admin")  # of a hospital's console; each may do what those before it may
DASHBOARD_ROLES = ("viewer", "coordinator", "admin")  # of the coordinator's dashboard
_RANKS = {"viewer": 0, "data-manager": 1, "coordinator": 1, "admin": 2}
# What a token may be confined to, of the node's console and of the coordinator's dashboard; a role's own limits hold beside it.
SCOPES = (
    "status", "studies", "projects", "decide", "egress", "training", "optout", "steer", "quarantine", "orthanc", "accounts",
    "runs", "members",
)  # fmt: skip
IDLE_SECONDS = 30 * 60
SESSION_SECONDS = 12 * 3600
LOCK_AFTER = 5
LOCK_SECONDS = 15 * 60
MIN_PASSWORD = 12
_NAME = re.compile(r"[\w.@-][\w .@-]{0,63}")

migrations = Migrations("fedpacs.accounts")


@migrations()
def m001_accounts(db: Any) -> None:
    db["accounts"].create(
        {"name": str, "role": str, "password": str, "failures": int, "locked_until": float, "at": float, "by": str},
        pk="name",
    )
    db["sessions"].create({"digest": str, "name": str, "role": str, "expires": float, "idle_until": float}, pk="digest")
    db["tokens"].create({"digest": str, "name": str, "role": str, "at": float, "by": str}, pk="digest")


@migrations()
def m002_scopes(db: Any) -> None:
    """A token's scopes, separated by spaces; none means everything its role may."""
    db["tokens"].add_column("scopes", str, not_null_default="")


@dataclass(frozen=True)
class Account:
    """Somebody who may ask, and how much. `name` is how the audit log calls them; no `scopes` means all."""

    name: str
    role: str
    scopes: frozenset[str] = frozenset()

    def may(self, role: str) -> bool:
        """Whether this one's role reaches `role`."""
        return _RANKS[self.role] >= _RANKS[role]

    def within(self, scope: str) -> bool:
        """Whether a token's scopes cover `scope`."""
        return not self.scopes or scope in self.scopes


class Accounts:
    """The accounts in one file. `record(kind, **facts)` is told of every change and every refused log-in."""

    def __init__(
        self,
        path: Path,
        record: Callable[..., Any] = lambda kind, **facts: None,
        clock: Callable[[], float] = time.time,
        roles: Sequence[str] = ROLES,
    ) -> None:
        """`roles` are those that can be given here, least first. Raises StorageError."""
        self._db = connect(path, migrations)
        path.chmod(0o600)
        self._record, self._clock, self.roles = record, clock, tuple(roles)

    def close(self) -> None:
        self._db.close()

    # -- accounts -----------------------------------------------------------------------------------------------------

    def add(self, name: str, role: str, password: str, by: str) -> None:
        """Make an account. The first must be an admin.

        Raises InputError for a bad name, role or password, RefusedError when the name is taken.
        """
        self._check(name, role)
        hashed = _hash(password)
        with transaction(self._db) as db:
            if role != "admin" and self.empty():
                raise InputError(
                    "The first account must be an admin, or nobody could make the next: give it that role."
                )
            if self._row(name) is not None:
                raise RefusedError(f"The account {name} exists already: choose another name, or change its password.")
            db.execute("INSERT INTO accounts VALUES(?,?,?,0,0,?,?)", (name, role, hashed, self._clock(), by))
        self._record("account.added", account=name, role=role, by=by)

    def change(self, name: str, by: str, *, role: str | None = None, password: str | None = None) -> None:
        """Give another role or password; ends the account's sessions. Raises InputError, RefusedError."""
        self._check(name, role or self.roles[0])
        hashed = _hash(password) if password is not None else None
        with transaction(self._db) as db:
            row = self._known(name)
            if role is not None and role != "admin":
                self._keep_an_admin(row)
            db.execute(
                "UPDATE accounts SET role=?, password=?, failures=0, locked_until=0 WHERE name=?",
                (role or row["role"], hashed or row["password"], name),
            )
            db.execute("DELETE FROM sessions WHERE name=?", (name,))
        self._record("account.changed", account=name, role=role or row["role"], password=password is not None, by=by)

    def remove(self, name: str, by: str) -> None:
        """Remove an account and end its sessions. Raises RefusedError for an unknown one and for the last admin."""
        with transaction(self._db) as db:
            self._keep_an_admin(self._known(name))
            db.execute("DELETE FROM accounts WHERE name=?", (name,))
            db.execute("DELETE FROM sessions WHERE name=?", (name,))
        self._record("account.removed", account=name, by=by)

    def all(self) -> list[dict[str, Any]]:
        """Names, roles, since when and by whom, and whether they are locked out now."""
        now = self._clock()
        return [
            {"name": r["name"], "role": r["role"], "at": r["at"], "by": r["by"], "locked": r["locked_until"] > now}
            for r in self._db.execute("SELECT * FROM accounts ORDER BY name")
        ]

    def note(self, kind: str, **facts: Any) -> None:
        """Record what happened to somebody who has no account here."""
        self._record(kind, **facts)

    def empty(self) -> bool:
        """Whether nobody has an account yet."""
        return self._db.execute("SELECT 1 FROM accounts LIMIT 1").fetchone() is None

    # -- sessions -----------------------------------------------------------------------------------------------------

    def log_in(self, name: str, password: str) -> str:
        """A session's token. Raises RefusedError with the same words for a wrong name and a wrong password."""
        row, now = self._row(name), self._clock()
        if row is not None and row["locked_until"] > now:
            minutes = -(-(row["locked_until"] - now) // 60)
            raise RefusedError(f"Too many wrong passwords: this account is locked for {minutes:.0f} more minutes.")
        right = _matches(password, row["password"] if row is not None else _nobody())
        if row is None or not right:
            self._failed(row, name)
            raise RefusedError("The name or the password is wrong.")
        self._db.execute("UPDATE accounts SET failures=0, locked_until=0 WHERE name=?", (name,))
        self._record("login", account=name)
        return self.open_session(Account(name, row["role"]))

    def open_session(self, account: Account) -> str:
        """A session for somebody whose right was checked otherwise."""
        token, now = secrets.token_urlsafe(32), self._clock()
        self._db.execute("DELETE FROM sessions WHERE expires < ? OR idle_until < ?", (now, now))
        self._db.execute(
            "INSERT INTO sessions VALUES(?,?,?,?,?)",
            (_digest(token), account.name, account.role, now + SESSION_SECONDS, now + IDLE_SECONDS),
        )
        return token

    def session(self, token: str) -> Account | None:
        """Who holds this session; each use puts off its end by IDLE_SECONDS, up to SESSION_SECONDS in all."""
        now, digest = self._clock(), _digest(token)
        row = self._db.execute("SELECT * FROM sessions WHERE digest=?", (digest,)).fetchone()
        if row is None or now > min(row["expires"], row["idle_until"]):
            return None
        if row["idle_until"] - now < IDLE_SECONDS - 60:  # not a write for every request
            self._db.execute("UPDATE sessions SET idle_until=? WHERE digest=?", (now + IDLE_SECONDS, digest))
        return Account(row["name"], row["role"])

    def log_out(self, token: str, by: str = "") -> None:
        """End a session; `by` is whom the audit log names, when it is to be recorded."""
        ended = self._db.execute("DELETE FROM sessions WHERE digest=?", (_digest(token),)).rowcount
        if ended and by:
            self._record("logout", by=by)

    # -- tokens for scripts -------------------------------------------------------------------------------------------

    def add_token(self, name: str, role: str, by: str, scopes: Sequence[str] = ()) -> str:
        """A token for a script, shown once; no `scopes` means all its role may. Raises InputError, RefusedError."""
        self._check(name, role)
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown:
            raise InputError(f"{unknown[0]!r} is no scope: choose among {', '.join(SCOPES)}.")
        token = secrets.token_urlsafe(32)
        with transaction(self._db) as db:
            if db.execute("SELECT 1 FROM tokens WHERE name=?", (name,)).fetchone():
                raise RefusedError(f"A token named {name} exists already: remove it first, or choose another name.")
            db.execute(
                "INSERT INTO tokens(digest, name, role, at, by, scopes) VALUES(?,?,?,?,?,?)",
                (_digest(token), name, role, self._clock(), by, " ".join(sorted(set(scopes)))),
            )
        self._record("token.added", token=name, role=role, scopes=sorted(set(scopes)), by=by)
        return token

    def remove_token(self, name: str, by: str) -> None:
        """Raises RefusedError for an unknown one."""
        if not self._db.execute("DELETE FROM tokens WHERE name=?", (name,)).rowcount:
            raise RefusedError(f"No token is named {name}: see `fedpacs node account list`.")
        self._record("token.removed", token=name, by=by)

    def tokens(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self._db.execute("SELECT name, role, at, by, scopes FROM tokens ORDER BY name")]

    def token(self, token: str) -> Account | None:
        """Whose token this is."""
        row = self._db.execute("SELECT name, role, scopes FROM tokens WHERE digest=?", (_digest(token),)).fetchone()
        return Account(row["name"], row["role"], frozenset(row["scopes"].split())) if row else None

    def known_role(self, role: str) -> str:
        """The role as somebody else tells it; one that cannot be given here is a viewer's."""
        return role if role in self.roles else self.roles[0]

    # -- within -------------------------------------------------------------------------------------------------------

    def _check(self, name: str, role: str) -> None:
        if not _NAME.fullmatch(name):
            raise InputError(
                "An account's name is 1 to 64 letters, digits, spaces or . @ - _, and begins with none of the spaces."
            )
        if role not in self.roles:
            raise InputError(f"{role!r} is no role here: choose one of {', '.join(self.roles)}.")

    def _row(self, name: str) -> Any:
        return self._db.execute("SELECT * FROM accounts WHERE name=?", (name,)).fetchone()

    def _known(self, name: str) -> Any:
        row = self._row(name)
        if row is None:
            raise RefusedError(f"No account is named {name}: see `fedpacs node account list`.")
        return row

    def _keep_an_admin(self, row: Any) -> None:
        admins = self._db.execute("SELECT count(*) FROM accounts WHERE role='admin'").fetchone()[0]
        if row["role"] == "admin" and admins == 1:
            raise RefusedError(f"{row['name']} is the last admin: make another one first.")

    def _failed(self, row: Any, name: str) -> None:
        """Count a failure; the name of somebody unknown is not recorded, for it may be a password typed one line too high."""
        if row is None:
            self._record("login.refused", account="unknown")
            return
        failures = row["failures"] + 1
        locked = self._clock() + LOCK_SECONDS if failures >= LOCK_AFTER else 0.0
        self._db.execute(
            "UPDATE accounts SET failures=?, locked_until=? WHERE name=?", (0 if locked else failures, locked, name)
        )
        self._record("login.refused", account=name, locked=bool(locked))


def _hash(password: str) -> str:
    if len(password) < MIN_PASSWORD:
        raise InputError(f"A password has at least {MIN_PASSWORD} characters: choose a longer one.")
    return _argon2().derive_phc_encoded(password.encode())


def _argon2() -> Argon2id:
    """OWASP's second choice of parameters: 19 MiB, two passes; about 70 ms."""
    return Argon2id(salt=os.urandom(16), length=32, iterations=2, lanes=1, memory_cost=19 * 1024)


def _matches(password: str, encoded: str) -> bool:
    try:
        Argon2id.verify_phc_encoded(password.encode(), encoded)
    except InvalidKey:
        return False
    return True


@cache
def _nobody() -> str:
    """A hash that no password has: an unknown name takes as long as a known one."""
    return _argon2().derive_phc_encoded(secrets.token_bytes(32))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
