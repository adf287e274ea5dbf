"""What may go wrong between a hospital and its federation, told in one sentence each.

    FederationError                exit code 1
    ├── SettingsError              3   coordinator.toml cannot be read or holds a wrong value
    ├── DocumentError              4   a file or message is not what it should be
    │   ├── ProjectError           4   ... a project file
    │   └── MessageError           4   ... a message or update (shape, round, NaN)
    ├── RefusedError               5   not approved, changed, out of order, or against the policy
    ├── UnreachableError           6   the coordinator or a site does not answer
    ├── StateError                 7   the coordinator's state, a key or a checkpoint cannot be read or written
    ├── SignatureError             8   a wrong key, a bad signature, a changed or misdirected message
    │   └── AccusedError           8   ... proven or claimed to be one site's doing: `site`
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
    pass


class MessageError(DocumentError):
    pass


class RefusedError(FederationError):
    exit_code = 5


class UnreachableError(FederationError):
    exit_code = 6


class StateError(FederationError):
    exit_code = 7


class SignatureError(FederationError):
    exit_code = 8


class AccusedError(SignatureError):
    def __init__(self, site: str, message: str) -> None:
        super().__init__(message)
        self.site = site


class TooFewSitesError(FederationError):
    exit_code = 9
