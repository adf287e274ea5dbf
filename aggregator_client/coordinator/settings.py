"""The coordinator's folder and its one configuration: coordinator.toml, written commented, typed, checked when it is read.

DIR/coordinator.toml    this configuration
DIR/keys/               0700: signing.pem, sealing.key (aggregator_client.keys), tls-ca.{pem,key}, tls.{pem,key}
DIR/invited/ members/   hospitals invited and enrolled (aggregator_client.invitations)
DIR/runs/<digest>/      one folder for each project that was run: state, checkpoints, metrics
"""

from __future__ import annotations

import ipaddress
import json
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aggregator_client import tls
from aggregator_client.errors import SettingsError, StateError
from aggregator_client.invitations import Invitation
from aggregator_client.keys import CoordinatorKeys, coordinator_keys, exist
from aggregator_client.roster import Members
from dicom_node.config import OidcSettings, ProxySettings

_TEMPLATE = """\
# fedpacs coordinator. Relative paths are relative to the folder this file stands in.

name = {name}            # who asks the hospitals; stands in every project and invitation

[network]
address = {address}      # host name or IP address hospitals dial; the TLS certificate is made for it
port = {port}            # the one port hospitals need to reach (HTTPS)
listen = {listen}        # interface to listen on

[storage]
keys = "keys"            # keep a copy elsewhere: without it no project of yours can go on
runs = "runs"            # models, metrics and state, one folder for each project

[dashboard]              # anything but loopback needs TLS; oidc and proxy: docs/console.md
names = []               # further host names it answers to
# tls_certificate = "keys/dashboard.crt"
# tls_key = "keys/dashboard.key"
"""


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkSettings(_Group):
    address: str = Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9_.:-]+$")
    port: int = Field(default=9092, ge=1, le=65535)
    listen: str = "0.0.0.0"


class StorageSettings(_Group):
    keys: Path = Path("keys")
    runs: Path = Path("runs")


class DashboardSettings(_Group):
    """Who may open the dashboard from where; the same settings as [web] of a node."""

    names: tuple[str, ...] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    oidc: OidcSettings = OidcSettings()
    proxy: ProxySettings = ProxySettings()


class CoordinatorConfig(_Group):
    """Everything coordinator.toml says. Paths are absolute; `root` is the folder it stands in."""

    path: Path
    root: Path
    name: str = Field(min_length=1, max_length=120)
    network: NetworkSettings
    storage: StorageSettings = StorageSettings()
    dashboard: DashboardSettings = DashboardSettings()

    @property
    def url(self) -> str:
        """What hospitals dial."""
        host = f"[{self.network.address}]" if ":" in self.network.address else self.network.address
        return f"https://{host}:{self.network.port}"

    @property
    def tls(self) -> tls.TlsFiles:
        return tls.TlsFiles.below(self.storage.keys)

    def keys(self) -> CoordinatorKeys:
        """The signing and sealing keys. Raises SettingsError when they are gone: fresh ones would be strangers to all."""
        if not exist(self.storage.keys):
            raise SettingsError(
                f"The coordinator's keys in {self.storage.keys} are missing: restore them from your copy."
            )
        return coordinator_keys(self.storage.keys)

    @property
    def members(self) -> Members:
        return Members(self.root)

    def run_folder(self, digest: str) -> Path:
        return self.storage.runs / digest

    def invite(self, site: str) -> Invitation:
        """The signed invitation of one hospital; asking again gives the same token."""
        keys = self.keys()
        return Invitation.model_validate(
            {
                "site": site,
                "token": self.members.expect(site),
                "coordinator": self.name,
                "address": self.url,
                "ca_pem": self.tls.authority.read_text(encoding="ascii"),
                **keys.public_base64(),
            }
        ).signed(keys.signing)


def create(folder: Path, *, name: str, host: str, port: int) -> CoordinatorConfig:
    """Make a coordinator's folder: coordinator.toml, keys, TLS authority and certificate.

    Raises SettingsError when there is one already or a value is wrong, StateError when the folder cannot be written.
    """
    file = folder.expanduser().resolve() / "coordinator.toml"
    if file.exists():
        raise SettingsError(f"{file} exists already: choose another folder, or edit that file.")
    listen = "127.0.0.1" if _is_loopback(host) else "0.0.0.0"
    _validated(file, {"name": name, "network": {"address": host, "port": port, "listen": listen}})
    text = _TEMPLATE.format(
        name=json.dumps(name, ensure_ascii=False), address=json.dumps(host), port=port, listen=json.dumps(listen)
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        keys = file.parent / "keys"
        coordinator_keys(keys)
        tls.create(keys, name, host)
        (file.parent / "runs").mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StateError(
            f"{file.parent} cannot be written ({error.strerror}): choose a folder on a writable disk."
        ) from None
    return load(file)


def load(path: Path | str) -> CoordinatorConfig:
    """Read and check coordinator.toml (or the one in a folder). Raises SettingsError naming file, key and the mend."""
    file = Path(path).expanduser().resolve()
    if file.is_dir():
        file = file / "coordinator.toml"
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"{file} does not exist: make a coordinator with `fedpacs coordinator init DIR`, or give --dir DIR."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{file} cannot be read ({type(error).__name__}): check permissions and encoding."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file} is not valid TOML: {error}; mend that line.") from None
    return _validated(file, values)


def _validated(file: Path, values: dict[str, Any]) -> CoordinatorConfig:
    try:
        config = CoordinatorConfig.model_validate({**values, "path": file, "root": file.parent})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{file}: {key} is wrong ({first['msg']}): mend the value.") from None
    storage = {name: file.parent / value for name, value in config.storage}
    files = {name: file.parent / value for name, value in config.dashboard if isinstance(value, Path)}
    return config.model_copy(
        update={
            "storage": config.storage.model_copy(update=storage),
            "dashboard": config.dashboard.model_copy(update=files),
        }
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
