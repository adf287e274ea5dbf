"""Makes a node's folder: the commented node.toml, the guarded folders and the keys it needs before its first start."""

from __future__ import annotations

import ipaddress
import json
import secrets
from collections.abc import Sequence
from pathlib import Path

from dicom_node.config import check_ae_title, load_config
from dicom_node.errors import ConfigError, StorageError

_TEMPLATE = """\
# fedpacs node. Relative paths are relative to the folder this file stands in.
# `fedpacs doctor --config {file}` says what is missing.

[node]
name = {name}                 # how this hospital is called in the federation
timezone = "UTC"

[dicom]                             # what modalities and the PACS need to know
ae_title = {ae_title}
host = "0.0.0.0"                    # interface to listen on
port = {port}
processes = 2                       # receiver processes on that port; more than cores does not help
max_associations = 64
max_pdu = 131072
allowed_ae_titles = []              # calling AE titles; [] accepts any
require_called_ae_title = false     # refuse who calls this node by another AE title
rules = []                          # per calling AE: [{{ ae_title = "CT1", networks = ["10.0.0.5/32"], sop_classes = [] }}]
allowed_networks = {networks}   # add your modalities' network, e.g. "10.20.0.0/16"
private_sop_classes = []            # private storage SOP Class UIDs to accept
peers = []                          # "AETITLE@host:port" of peers that want storage commitment reported later
idle_timeout_s = 60                 # an association without a message for so long is aborted
stall_timeout_s = 30                # a message that stops half way for so long is aborted
# tls_certificate = "keys/dicom.crt"   # set all three for mutual TLS
# tls_key = "keys/dicom.key"
# tls_ca = "keys/dicom-ca.crt"

[storage]
spool = "spool"                     # IDENTIFIED: what was received
quarantine = "quarantine"           # IDENTIFIED: what could not be proven clean
vault = "vault"                     # pseudonym key and crosswalk, encrypted
keys = "keys"
dataset = "dataset"                 # de-identified instances
catalogue = "catalogue.db"
audit = "audit.db"
logs = "logs"
federation = "federation"
run = "run"
min_free_mb = 512                   # below this much free disk C-STORE is refused with 0xA700
keep_identified_hours = 168         # received bytes of a de-identified study are deleted after that
encryption = "none"                 # "dm-crypt": start only when all of this lies on LUKS; "attested": you vouch for it

[retention]
quarantine_hours = 0                # identified bytes set aside are deleted after that; 0: when somebody decides

[study]
quiet_seconds = 30                  # a study is complete when nothing came for so long
workers = 1                         # de-identification processes

[deid]
profile = "federated-default"       # basic | tcia | federated-default | a TOML file of your own
uid_root = "2.25"
retain = []                         # PS3.15 options to add

[policy]                            # which studies may take part at all; [] means any
modalities = []
sop_classes = []
# min_age_years = 18
# max_age_years = 120
exclude_burned_in = false
require_labels = false
paused = false

[privacy]                           # the most a patient may lose over all projects with differential privacy
epsilon = 10.0
delta = 1e-5
# attack_bound = 0.2                # send no update before `fedpacs audit attack` told at most this share of images apart

[web]
host = "127.0.0.1"                  # anything but loopback needs the two files below
port = {http_port}
token_file = "keys/api.token"
# unix_socket = "run/console.sock"   # a second door, for an Orthanc on this machine (Url "unix:///...")
# tls_certificate = "keys/console.crt"
# tls_key = "keys/console.key"
names = []                          # further host names the console answers to, e.g. behind a reverse proxy
# log-in through the hospital's OpenID Connect provider, or by a reverse proxy's headers: docs/console.md
# oidc = {{ issuer = "https://login.example/realms/x", public_url = "https://node.example", roles = {{ admin = ["pacs"] }} }}
# proxy = {{ addresses = ["127.0.0.1/32"], user_header = "X-Remote-User", role_header = "X-Remote-Role" }}

[federation]
coordinator = ""                    # "https://coordinator.example:9092"; "" stays out of any federation
invitation = "keys/invitation.json" # what the coordinator gave you
poll_seconds = 1.0
device = "auto"                     # auto | cpu | cuda
gpus_per_job = 1                    # GPUs a training takes at once; 0 = all of them. Other jobs wait for a free one
hours = []                          # e.g. ["19:00-06:00"]; [] means at any time
proxy = ""

[inference]                         # models that run on every new de-identified study they are for
models = []                         # [{{ folder = "models/liver", modalities = ["CT"], body_parts = [], type = "binary" }}]
poll_seconds = 5.0

[results]                           # where Segmentations and reports made here go
pacs = ""                           # "AETITLE@host:port", or "https://pacs.example/dicom-web"; "": the Orthanc below
# tls_ca = "keys/pacs-ca.crt"            # for TLS: who signed the PACS's certificate
# tls_certificate = "keys/dicom.crt"     # for mutual TLS: this node's certificate
# tls_key = "keys/dicom.key"             # its key
# password_file = "keys/pacs.password"   # DICOMweb: "user:password"
# token_file = "keys/pacs.token"         # DICOMweb: a bearer token

[orthanc]
url = ""                            # "http://127.0.0.1:8042" to follow an Orthanc
username = ""
# password_file = "keys/orthanc.password"
poll_seconds = 2.0
more = []                           # further Orthancs: [{{ url = "http://127.0.0.1:8043", username = "fedpacs" }}]

[vault]
key_file = "keys/vault.key"         # keep a copy elsewhere: without it no study can be re-identified
passphrase_env = ""                 # or the name of an environment variable that holds a passphrase
key_command = []                    # or a program that prints the key's 64 hex digits, e.g. pkcs11-tool: docs/keys-and-audit.md
"""


def write_default_config(
    folder: Path,
    *,
    ae_title: str = "FEDPACS",
    port: int = 11112,
    http_port: int = 8080,
    name: str = "hospital",
    networks: Sequence[str] = (),
) -> Path:
    """Write `folder`/node.toml and make the node's folders and first keys. Returns the file.

    `networks` (CIDR) may connect beside this machine itself.
    Raises ConfigError when the folder already holds a node or a value is wrong, StorageError when it cannot be written.
    """
    try:
        check_ae_title(ae_title)
    except ValueError as error:
        raise ConfigError(f"--ae-title {ae_title!r} {error}.") from None
    for network in networks:
        try:
            ipaddress.ip_network(network)
        except ValueError:
            raise ConfigError(
                f"--allow-network {network!r} is no network: write it as address/bits, for example 10.20.0.0/16."
            ) from None
    file = folder.expanduser().resolve() / "node.toml"
    if file.exists():
        raise ConfigError(f"{file} exists already: choose another folder, or edit that file.")
    text = _TEMPLATE.format(
        file=file.name,
        name=json.dumps(name),
        ae_title=json.dumps(ae_title),
        port=int(port),
        http_port=int(http_port),
        networks=json.dumps(["127.0.0.0/8", "::1/128", *networks]),
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for guarded in ("spool", "quarantine", "vault", "keys"):
            (file.parent / guarded).mkdir(mode=0o700, exist_ok=True)
        for plain in ("dataset", "logs", "federation", "run"):
            (file.parent / plain).mkdir(exist_ok=True)
        write_secret(file.parent / "keys" / "vault.key", secrets.token_hex(32) + "\n")
        write_secret(file.parent / "keys" / "api.token", secrets.token_urlsafe(32) + "\n")
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{file.parent} cannot be written ({error.strerror}): choose a folder on a writable disk."
        ) from None
    load_config(file)
    return file


def write_secret(file: Path, text: str) -> None:
    """Write a key file that only its owner can read, unless it exists already."""
    import os

    if file.exists():
        return
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
