"""One encrypted file that holds a whole node (or coordinator), made while it runs, and the way back from it.

Source(home, roots, settings_file, first)      what is to be kept: `node_source(config)` for a node
backup(source, out, secret) -> Report          safe beside a running daemon
restore(file, target, secret, settings_file) -> Report
"""

from __future__ import annotations

from dicom_node.backup.archive import Report, Source, backup
from dicom_node.backup.restore import restore
from dicom_node.backup.secret import read_secret

__all__ = ["Report", "Source", "backup", "read_secret", "restore"]
