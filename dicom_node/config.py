"""The one configuration of a node: node.toml, typed, checked when it is read, frozen afterwards."""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dicom_node.errors import ConfigError

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def require_tls_beyond_loopback(host: str, certificate: Path | None, key: Path | None) -> None:
    """ValueError when a console would be reachable from elsewhere without TLS, or has half of its TLS files."""
    if (certificate is None) != (key is None):
        raise ValueError("tls_certificate and tls_key belong together; set both")
    if certificate is None and not is_loopback(host):
        raise ValueError(f"host {host} is reachable from elsewhere; set tls_certificate and tls_key, or keep 127.0.0.1")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _safe_address(url: str) -> bool:
    """https, or http on this machine."""
    parts = urlsplit(url)
    return bool(parts.hostname) and (
        parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
    )


class NodeSettings(_Group):
    name: str = Field(default="hospital", min_length=1, max_length=64)
    timezone: str = "UTC"


def _networks(value: tuple[str, ...]) -> tuple[str, ...]:
    for network in value:
        ipaddress.ip_network(network, strict=False)
    return value


class AeRule(_Group):
    """What one calling AE title may do: from where, and which SOP classes; [] leaves that open."""

    ae_title: str
    networks: Annotated[tuple[str, ...], AfterValidator(_networks)] = ()
    sop_classes: tuple[str, ...] = ()

    @field_validator("ae_title")
    @classmethod
    def _title(cls, value: str) -> str:
        return check_ae_title(value)


class DicomSettings(_Group):
    ae_title: str = "FEDPACS"
    host: str = "0.0.0.0"
    port: Port = 11112
    processes: int = Field(default=2, ge=1, le=64)
    max_associations: int = Field(default=64, ge=1)
    max_pdu: int = Field(default=131072, ge=4096, le=2**24)
    allowed_ae_titles: tuple[str, ...] = ()
    allowed_networks: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    require_called_ae_title: bool = False
    rules: tuple[AeRule, ...] = ()
    private_sop_classes: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    idle_timeout_s: Seconds = 60
    stall_timeout_s: Seconds = 30
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None

    @field_validator("ae_title")
    @classmethod
    def _ae_title(cls, value: str) -> str:
        return check_ae_title(value)

    @field_validator("allowed_ae_titles")
    @classmethod
    def _ae_titles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_ae_title(title) for title in value)

    @field_validator("peers")
    @classmethod
    def _peers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for peer in value:
            title, _, address = peer.partition("@")
            host, _, port = address.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError(f"{peer!r} is not AETITLE@host:port")
            check_ae_title(title)
        return value

    @field_validator("allowed_networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network, strict=False)
        return value


class StorageSettings(_Group):
    spool: Path = Path("spool")
    quarantine: Path = Path("quarantine")
    vault: Path = Path("vault")
    keys: Path = Path("keys")
    dataset: Path = Path("dataset")
    catalogue: Path = Path("catalogue.db")
    audit: Path = Path("audit.db")
    logs: Path = Path("logs")
    federation: Path = Path("federation")
    run: Path = Path("run")
    min_free_mb: int = Field(default=512, ge=0)
    keep_identified_hours: float = Field(default=168, ge=0)
    encryption: Literal["none", "dm-crypt", "attested"] = "none"

    @property
    def accounts(self) -> Path:
        """The console's accounts, guarded like the keys they stand beside."""
        return self.keys / "accounts.db"


class RetentionSettings(_Group):
    quarantine_hours: float = Field(default=0, ge=0)


class StudySettings(_Group):
    quiet_seconds: Seconds = 30
    workers: int = Field(default=1, ge=1, le=64)


class DeidSettings(_Group):
    profile: str = "federated-default"
    uid_root: str = Field(default="2.25", pattern=r"^[0-2](\.(0|[1-9][0-9]*))+$")
    retain: tuple[str, ...] = ()


class PolicySettings(_Group):
    modalities: tuple[str, ...] = ()
    sop_classes: tuple[str, ...] = ()
    min_age_years: int | None = Field(default=None, ge=0, le=150)
    max_age_years: int | None = Field(default=None, ge=0, le=150)
    exclude_burned_in: bool = False
    require_labels: bool = False
    paused: bool = False


class PrivacySettings(_Group):
    """The most a patient may lose over all projects that train with differential privacy; and, where `attack_bound` is set, the
    largest share of images that `fedpacs audit attack` may tell apart in what a project would send, before anything is sent."""

    epsilon: float = Field(default=10.0, gt=0, le=1000)
    delta: float = Field(default=1e-5, gt=0, le=1e-3)
    attack_bound: float | None = Field(default=None, ge=0, le=1)


class OidcSettings(_Group):
    """Log-in through an OpenID Connect provider. `roles` says which values of the claim give which role."""

    issuer: str = ""
    client_id: str = "fedpacs"
    client_secret_file: Path | None = None
    public_url: str = ""
    name_claim: str = "preferred_username"
    roles_claim: str = "groups"
    roles: dict[Literal["viewer", "data-manager", "coordinator", "admin"], tuple[str, ...]] = {}

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.issuer and not _safe_address(self.issuer):
            raise ValueError("issuer must be https:// (http:// only on this machine)")
        if self.issuer and not (_safe_address(self.public_url) and self.roles):
            raise ValueError("needs public_url (where browsers find this console) and roles beside issuer")
        return self


class ProxySettings(_Group):
    """Log-in by the headers of a reverse proxy that authenticates people, believed from these addresses alone."""

    addresses: tuple[str, ...] = ()
    user_header: str = "X-Remote-User"
    role_header: str = "X-Remote-Role"

    @field_validator("addresses")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            ipaddress.ip_network(network, strict=False)
        return value


class WebSettings(_Group):
    host: str = "127.0.0.1"
    port: Port = 8080
    token_file: Path = Path("keys/api.token")
    unix_socket: Path | None = None
    names: tuple[str, ...] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    oidc: OidcSettings = OidcSettings()
    proxy: ProxySettings = ProxySettings()

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        require_tls_beyond_loopback(self.host, self.tls_certificate, self.tls_key)
        return self


class FederationSettings(_Group):
    coordinator: str = ""
    invitation: Path = Path("keys/invitation.json")
    poll_seconds: Seconds = 1.0
    device: str = "auto"
    gpus_per_job: int = Field(default=1, ge=0, le=64)
    hours: tuple[str, ...] = ()
    proxy: str = ""

    @field_validator("coordinator")
    @classmethod
    def _coordinator(cls, value: str) -> str:
        if value and not value.startswith("https://"):
            raise ValueError("must start with https:// (or be empty to stay out of any federation)")
        return value


class InferenceModel(_Group):
    """A model that runs on new studies by itself. `folder` holds model.safetensors and model.json."""

    folder: Path
    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    type: Literal["binary", "fractional", "labelmap"] = "binary"


class InferenceSettings(_Group):
    models: tuple[InferenceModel, ...] = ()
    poll_seconds: Seconds = 5.0


class ResultsSettings(_Group):
    """Where results go: "AETITLE@host:port" (C-STORE) or a DICOMweb root (STOW-RS); "" for the Orthanc that is followed."""

    pacs: str = ""
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    password_file: Path | None = None
    token_file: Path | None = None


class OrthancSource(_Group):
    url: str = ""
    username: str = ""
    password_file: Path | None = None


class OrthancSettings(OrthancSource):
    poll_seconds: Seconds = 2.0
    more: tuple[OrthancSource, ...] = ()

    @property
    def sources(self) -> tuple[OrthancSource, ...]:
        """Every Orthanc that this node follows."""
        return tuple(source for source in (self, *self.more) if source.url)


class VaultSettings(_Group):
    key_file: Path = Path("keys/vault.key")
    passphrase_env: str = ""
    key_command: tuple[str, ...] = ()


class NodeConfig(_Group):
    """Everything node.toml says. Paths are absolute; ``root`` is the folder node.toml stands in."""

    path: Path
    root: Path
    node: NodeSettings = NodeSettings()
    dicom: DicomSettings = DicomSettings()
    storage: StorageSettings = StorageSettings()
    retention: RetentionSettings = RetentionSettings()
    study: StudySettings = StudySettings()
    deid: DeidSettings = DeidSettings()
    policy: PolicySettings = PolicySettings()
    privacy: PrivacySettings = PrivacySettings()
    web: WebSettings = WebSettings()
    federation: FederationSettings = FederationSettings()
    inference: InferenceSettings = InferenceSettings()
    results: ResultsSettings = ResultsSettings()
    orthanc: OrthancSettings = OrthancSettings()
    vault: VaultSettings = VaultSettings()


def check_ae_title(value: str) -> str:
    """`value` when it is an application entity title (PS3.5 6.2, VR AE); ValueError otherwise."""
    if (
        not 1 <= len(value) <= 16
        or value != value.strip()
        or "\\" in value
        or not value.isprintable()
        or not value.isascii()
    ):
        raise ValueError("must be an AE title: 1 to 16 printable ASCII characters, no backslash, no space at the ends")
    return value


def load_config(path: Path | str) -> NodeConfig:
    """Read and check node.toml. Raises ConfigError naming file, key, wrong value and the mend."""
    file = Path(path).expanduser().resolve()
    if file.is_dir():
        file = file / "node.toml"
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{file} does not exist: make a node with `fedpacs node init DIR`, or name its node.toml."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file} cannot be read ({type(error).__name__}): check its permissions and encoding (UTF-8)."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is not valid TOML: {error}; mend that line.") from None
    reserved = {"path", "root"} & document.keys()
    if reserved:
        raise ConfigError(f"{file}: unknown key {sorted(reserved)[0]}: remove it.")
    try:
        config = NodeConfig.model_validate({**document, "path": file, "root": file.parent})
    except ValidationError as error:
        raise ConfigError(_sentence(file, error.errors())) from None
    return _absolute(config)


def _sentence(file: Path, errors: Iterable[Any]) -> str:
    first = next(iter(errors))
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{file}: unknown key {key}: remove it, or see the commented node.toml that `fedpacs node init` writes."
    message = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], dict) else f" = {first['input']!r}"
    return f"{file}: {key}{given} is wrong: {message[:1].lower()}{message[1:]}; mend the value."


def _absolute(config: NodeConfig) -> NodeConfig:
    """The same configuration with every path resolved against the folder of node.toml."""
    groups: dict[str, _Group] = {}
    for name in type(config).model_fields:
        group = getattr(config, name)
        if isinstance(group, _Group):
            paths = {k: config.root / v for k, v in group if isinstance(v, Path)}
            groups[name] = group.model_copy(update=paths)
    return config.model_copy(update=groups)
