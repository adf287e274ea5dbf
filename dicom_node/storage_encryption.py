"""Whether a node's data lie encrypted on disk, looked up rather than believed (`[storage] encryption`).

    "none"       nothing is claimed
    "dm-crypt"   every data folder must lie on dm-crypt (LUKS) devices; the node does not start otherwise
    "attested"   the hospital vouches for another way (self-encrypting drive, ZFS, storage array); nothing is looked up

Spool segments and de-identified files are read in place (memory maps, remembered pixel offsets), and so is the trainer's cache: a
file envelope would have to be undone into clear memory or files before every read. Encryption below the file system covers all of
them, SQLite's journals and swap included. The vault is encrypted by itself in any case (dicom_node.vault).
"""

from __future__ import annotations

import os
from pathlib import Path

from dicom_node.config import NodeConfig
from dicom_node.errors import ConfigError

FOLDERS = ("spool", "quarantine", "vault", "keys", "dataset", "catalogue", "audit", "logs", "federation", "run")
SYSFS = Path("/sys/dev/block")


def unencrypted(config: NodeConfig, sysfs: Path = SYSFS) -> list[str]:
    """Names of the data folders that cannot be shown to lie on dm-crypt."""
    return [name for name in FOLDERS if not on_dm_crypt(getattr(config.storage, name), sysfs)]


def require_as_configured(config: NodeConfig, sysfs: Path = SYSFS) -> None:
    """Raises ConfigError when node.toml asks for dm-crypt and a folder is not on it."""
    if config.storage.encryption != "dm-crypt":
        return
    bare = unencrypted(config, sysfs)
    if bare:
        raise ConfigError(
            f'{config.path}: storage.encryption is "dm-crypt" and {", ".join(bare)} cannot be shown to lie on a dm-crypt'
            ' (LUKS) device: move them there, or set "attested" or "none".'
        )


def on_dm_crypt(path: Path, sysfs: Path = SYSFS) -> bool:
    """Whether the file system that holds `path` (or will, once it is made) lies on dm-crypt devices only."""
    while not path.exists():
        path = path.parent
    device = path.stat().st_dev
    return _encrypted(f"{os.major(device)}:{os.minor(device)}", sysfs)


def _encrypted(number: str, sysfs: Path) -> bool:
    """A device is encrypted when it is dm-crypt, or when every device below it is (LVM, RAID, a partition of one)."""
    place = sysfs / number
    try:
        if (place / "dm" / "uuid").read_text(encoding="ascii").startswith("CRYPT-"):
            return True
    except OSError:
        pass  # no device-mapper device
    try:
        below = [(slave / "dev").read_text(encoding="ascii").strip() for slave in (place / "slaves").iterdir()]
    except OSError:
        return False  # an anonymous device (tmpfs, overlay, ZFS), or a bare one
    return bool(below) and all(_encrypted(one, sysfs) for one in below)
