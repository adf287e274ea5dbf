"""What may go wrong in the federation, told in one sentence each.

    FederationError                exit code 1
    ├── SettingsError              3   coordinator.toml cannot be read or holds a wrong value
    ├── DocumentError              4   an invitation, enrolment or other document is not what it should be
    │   └── ProjectError           4   a project file cannot be read or holds a wrong value
    ├── MessageError               4   a message or update is not what it should be (shape, round, NaN, truncated)
    ├── RefusedError               5   a site or the coordinator refuses: not approved, changed, out of order, paused
    ├── UnreachableError           6   the coordinator or a site does not answer
    ├── StateError                 7   the coordinator's state or a checkpoint cannot be read or written
    ├── SignatureError             8   a signature or seal does not verify (wrong key, changed, misdirected)
    └── TooFewSitesError           9   fewer sites took part than the project asks for

Every message is one sentence that names what is wrong, where, and how to mend it, and never holds an identified value.
"""

from __future__ import annotations


class FederationError(Exception):
    """Base of every error of this room that a user may read."""

    exit_code = 1


class SettingsError(FederationError):
    exit_code = 3


class DocumentError(FederationError):
    exit_code = 4


class ProjectError(DocumentError):
    exit_code = 4


class MessageError(FederationError):
    exit_code = 4


class RefusedError(FederationError):
    exit_code = 5


class UnreachableError(FederationError):
    exit_code = 6


class StateError(FederationError):
    exit_code = 7


class SignatureError(FederationError):
    exit_code = 8


class TooFewSitesError(FederationError):
    exit_code = 9
