"""What of a node is kept, and in which order it is read."""

from __future__ import annotations

from pathlib import Path

from dicom_node.backup.archive import Source
from dicom_node.config import NodeConfig


def node_source(config: NodeConfig) -> Source:
    """Everything but logs and what run/ tells of running processes; the pause is kept."""
    storage = config.storage
    folders = ("spool", "quarantine", "vault", "keys", "dataset", "catalogue", "audit", "federation")
    paths = {name: Path(getattr(storage, name)) for name in folders}
    outside = {name: path for name, path in paths.items() if not path.is_relative_to(config.root) and path.exists()}
    first = (
        storage.keys,
        storage.spool / "spool.db",
        storage.audit,
        storage.catalogue,
        storage.vault / "crosswalk.db",
        storage.vault,
    )
    return Source(
        kind="node",
        home=config.root,
        settings_file=config.path.name,
        first=tuple(path for path in first if path.exists()),
        roots=outside,
        left_out=(storage.logs, storage.run, storage.spool / "crash"),
        kept_anyway=(storage.run / "paused",),
    )


def not_kept(config: NodeConfig) -> list[str]:
    """Files that node.toml names and no backup holds, because they lie outside everything that is kept."""
    source = node_source(config)
    named = [
        *(value for group in (config.dicom, config.web, config.orthanc, config.vault) for _, value in group),
        config.web.oidc.client_secret_file,
        config.federation.invitation,
        *(one.password_file for one in config.orthanc.more),
    ]
    if config.deid.profile.endswith(".toml"):
        named.append(config.root / config.deid.profile)
    kept = (source.home, *source.roots.values())
    return sorted(
        str(path)
        for path in named
        if isinstance(path, Path) and path.is_file() and not any(path.is_relative_to(root) for root in kept)
    )
