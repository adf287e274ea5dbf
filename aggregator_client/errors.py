"""What may go wrong between a site and its federation, told in one sentence each.

    FederationError                exit code 1
    ├── DocumentError              4   a project file, invitation or enrolment is not what it should be
    ├── RefusedError               5   not approved, changed, out of order, or against the policy
    ├── TransportError             6   the other side does not answer
    └── SealError                  8   a wrong key, a bad signature, a changed or misdirected message

Messages never hold an identified value.
"""

from __future__ import annotations


class FederationError(Exception):
    """Base of every error of this room that a user may read."""

    exit_code = 1


class DocumentError(FederationError):
    exit_code = 4


class RefusedError(FederationError):
    exit_code = 5


class TransportError(FederationError):
    exit_code = 6


class SealError(FederationError):
    exit_code = 8
