"""What may go wrong at a node, told in one sentence each.

    NodeError                      exit code 1
    ├── ConfigError                3   node.toml cannot be read or holds a wrong value
    ├── InputError                 4   a file or argument given by a person is not what it should be
    ├── RefusedError               5   policy, approval or digest forbids it
    ├── UnreachableError           6   a peer (PACS, coordinator, node) does not answer
    ├── StorageError               7   disk full, database locked or damaged
    ├── IntegrityError             8   audit chain broken, wrong key, bad signature
    └── NotEnoughDataError         9   fewer studies or patients than the work needs

Every message is one sentence that names what is wrong, where, and how to mend it, and never holds an identified value.
"""

from __future__ import annotations


class NodeError(Exception):
    """Base of every error a user of the node may read."""

    exit_code = 1


class ConfigError(NodeError):
    exit_code = 3


class InputError(NodeError):
    exit_code = 4


class RefusedError(NodeError):
    exit_code = 5


class UnreachableError(NodeError):
    exit_code = 6


class StorageError(NodeError):
    exit_code = 7


class IntegrityError(NodeError):
    exit_code = 8


class NotEnoughDataError(NodeError):
    exit_code = 9
