"""A project: what a coordinator asks hospitals to do together, as a signed document that a person can read.

A coordinator writes a draft in TOML and signs it into a JSON file:

    {"format": "fedpacs-project-1", "digest": "...", "project": {...}, "signature": "..."}

The digest is the SHA-256 of the canonical JSON of "project" exactly as it stands in the file (sorted keys, no spaces, ASCII), so
that a later version of this package, with more settings, computes the same. The signature is Ed25519 (RFC 8032) over the
domain-separated digest with the key the document itself names; whether that is the coordinator this hospital knows is for
`aggregator_client.approvals` to say. Nothing in a project is code: it names installed parts and their settings.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from aggregator_client.compression import TransferSettings
from aggregator_client.decentral.settings import ALGORITHM as DECENTRALISED
from aggregator_client.decentral.settings import PeerSettings
from aggregator_client.errors import ProjectError, SignatureError
from aggregator_client.keys import SEALING_PUBLIC_BYTES, fingerprint
from aggregator_client.private import PrivateTerms, fault
from aggregator_client.votes import VoteSettings
from dicom_node.records import CohortRule
from trainer.spec import LocalSpec, NetworkSpec, StudyContract, TaskSpec

FORMAT = "fedpacs-project-1"
MAX_BYTES = 1 << 20
_SIGN = b"fedpacs project v1\x00"
M = TypeVar("M", bound=BaseModel)
_NAME = r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CoordinatorIdentity(_Part):
    """Who asks. Keys are base64: Ed25519 (32 bytes) for signatures, MLKEM768-X25519 (1216 bytes) for sealing."""

    name: str = Field(min_length=1, max_length=120)
    signing_public: str
    sealing_public: str

    @field_validator("signing_public", "sealing_public")
    @classmethod
    def _key(cls, value: str, info: Any) -> str:
        size = 32 if info.field_name == "signing_public" else SEALING_PUBLIC_BYTES
        if len(base64.b64decode(value, validate=True)) != size:
            raise ValueError(f"must be {size} bytes in base64")
        return value

    @property
    def signing_key(self) -> bytes:
        return base64.b64decode(self.signing_public)

    @property
    def sealing_key(self) -> bytes:
        return base64.b64decode(self.sealing_public)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.signing_key, self.sealing_key)


class AlgorithmSpec(_Part):
    """The federated algorithm, by its installed name, and its settings."""

    name: str = Field(default="fedavg", pattern=r"^[a-z][a-z0-9_]*$")
    args: dict[str, Any] = Field(default_factory=dict)


class DataContract(StudyContract):
    """What a hospital's own data must fulfil before it takes part; checked by the hospital, told to nobody else.

    A study that fails min_slices, spacing_mm, slice_mm or intensity (trainer.spec.StudyContract) is left out; a hospital that
    fails the others sits the project out. Modality, body part and view are the cohort's, the schema of labels is the task's.
    """

    min_train_images: int = Field(default=2, ge=2)
    min_classes: int = Field(default=1, ge=1)
    max_unlabelled_share: float = Field(default=1.0, ge=0, le=1)

    @property
    def of_study(self) -> StudyContract:
        """What is asked of each study."""
        return StudyContract.model_validate({name: getattr(self, name) for name in StudyContract.model_fields})


class SumSettings(_Part):
    """The terms of secure aggregation. `sites`: base64 of each hospital's Ed25519 key by its name; no other takes part.

    ring: bits of an element. clip: the largest change of a number. weight_cap: a hospital with more samples counts as this many.
    group_size: 0 sums all hospitals at once; 3 or more sums groups of so many and takes the median of the groups. max_norm: what
    the whole model may change by in a round (L2 norm), 0 for no bound.
    """

    ring: Literal[16, 32, 64] = 32
    clip: float = Field(default=8.0, gt=0, lt=1e6)
    weight_cap: int = Field(default=1000, ge=1, lt=2**32)
    group_size: int = Field(default=0, ge=0, le=50)
    max_norm: float = Field(default=0.0, ge=0, lt=1e9)
    sites: dict[str, str] = Field(default_factory=dict, max_length=50)

    @property
    def keys(self) -> dict[str, bytes]:
        """Raw Ed25519 keys by name."""
        return {name: base64.b64decode(key) for name, key in self.sites.items()}


SPLIT = "split"
SUMMABLE = ("fedavg", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi")
"""The algorithms that need no more than the weighted mean of the updates."""
VOTABLE = (
    *SUMMABLE, "fednova", "median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "centred_clipping", "norm_bound",
)  # fmt: skip
"""Those whose round ends in one model that every hospital can measure."""


class PrivacySettings(_Part):
    """sealed: each update is encrypted to the coordinator and signed by the site; the coordinator sees single updates.

    secure_aggregation: the coordinator sees the sum of at least min_sites (three or more) updates, and no single one.

    vote: each round's candidate model is measured by every hospital on its own held-out patients, and voted on.

    dp: noise in local training (differential privacy), with either mode; None means none.
    """

    mode: Literal["sealed", "secure_aggregation"] = "sealed"
    vote: VoteSettings = VoteSettings()
    secure_aggregation: SumSettings = SumSettings()
    dp: PrivateTerms | None = None

    @property
    def summed(self) -> bool:
        return self.mode == "secure_aggregation"


class SplitSettings(_Part):
    """How patients fall into training, validation and test (70/10/20) unless their hospital designates them by label."""

    salt: str = Field(default="", max_length=64)


class StopSettings(_Part):
    """When a run ends and which model is kept. The metric is the mean over the sites' own held-out patients.

    patience: end when so many rounds brought no model that is better by more than `min_gain`; 0 runs all rounds. keep: the last
    round's model, or the best one.
    """

    patience: int = Field(default=0, ge=0, le=1000)
    min_gain: float = Field(default=0.0, ge=0, lt=1)
    keep: Literal["last", "best"] = "last"


class PersonalSettings(_Part):
    """After the last round each site may train the final model further on its own patients; that model never leaves it.

    epochs 0 means no such training; lr None takes a tenth of `local.lr`.
    """

    epochs: int = Field(default=0, ge=0, le=100)
    lr: float | None = Field(default=None, gt=0, le=10)


class ReferenceSettings(_Part):
    """The reference studies an ensemble is asked about: SHA-256 of each DICOM file. Sites answer for nothing else."""

    digests: tuple[str, ...] = ()

    @field_validator("digests")
    @classmethod
    def _hex(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value) or any(len(one) != 64 or set(one) - set("0123456789abcdef") for one in value):
            raise ValueError("must hold distinct SHA-256 digests in lower-case hex")
        return value


class ProjectDraft(_Part):
    """Everything but who asks: what a coordinator writes in TOML."""

    name: str = Field(pattern=_NAME)
    version: str = Field(pattern=_NAME)
    purpose: str = Field(min_length=10, max_length=2000)
    rounds: int = Field(ge=1, le=10_000)
    min_sites: int = Field(default=2, ge=1, le=1000)
    deadline_s: float = Field(default=600.0, gt=0, le=7 * 86400)
    seed: int = Field(default=0, ge=0, lt=2**32)
    task: TaskSpec
    cohort: CohortRule
    contract: DataContract = DataContract()
    network: NetworkSpec
    algorithm: AlgorithmSpec = AlgorithmSpec()
    local: LocalSpec = LocalSpec()
    privacy: PrivacySettings = PrivacySettings()
    split: SplitSettings = SplitSettings()
    stop: StopSettings = StopSettings()
    transfer: TransferSettings = TransferSettings()
    personal: PersonalSettings = PersonalSettings()
    reference: ReferenceSettings = ReferenceSettings()
    peers: PeerSettings = PeerSettings()

    @model_validator(mode="after")
    def _one_label(self) -> Self:
        if not self.task.label and self.task.name == "classification":
            raise ValueError("task.label must name the study label that is learned")
        if self.cohort.label and self.cohort.label != self.task.label:
            raise ValueError("cohort.label must be the same as task.label (or be left out)")
        if self.cohort.classes and set(self.cohort.classes) != set(self.task.classes):
            raise ValueError("cohort.classes must hold the same values as task.classes (or be left out)")
        return self

    @model_validator(mode="after")
    def _private(self) -> Self:
        if self.privacy.dp is not None and (told := fault(self)):
            raise ValueError(told)
        return self

    @model_validator(mode="after")
    def _summable(self) -> Self:
        if not self.privacy.summed:
            return self
        if self.algorithm.name not in SUMMABLE:
            raise ValueError(
                f"algorithm.name must be one of {', '.join(SUMMABLE)} with privacy.mode secure_aggregation: a rule that looks at"
                " single updates and full secrecy exclude each other"
            )
        if self.transfer.compression != "none":
            raise ValueError("transfer.compression must be none with privacy.mode secure_aggregation")
        size = self.privacy.secure_aggregation.group_size
        if size and (size < 3 or self.min_sites < 3 * size):
            raise ValueError(
                "privacy.secure_aggregation.group_size must be 3 or more, and min_sites three times as many: of fewer groups no"
                " minority can be outvoted"
            )
        if self.min_sites < 3:
            raise ValueError(
                "min_sites must be 3 or more with privacy.mode secure_aggregation: in a sum of two each sees the other"
            )
        return self

    @model_validator(mode="after")
    def _votable(self) -> Self:
        if self.privacy.vote.share and self.algorithm.name not in VOTABLE:
            raise ValueError(
                f"privacy.vote.share must be 0 or left out unless algorithm.name is one of {', '.join(VOTABLE)}"
            )
        return self

    @model_validator(mode="after")
    def _among_peers(self) -> Self:
        if (self.algorithm.name == DECENTRALISED) != bool(self.peers.relays):
            raise ValueError(f"peers.relays must name a relay for the algorithm {DECENTRALISED}, and for no other")
        if self.algorithm.name != DECENTRALISED:
            return self
        if self.privacy.summed or self.transfer.compression != "none" or self.stop.patience or self.stop.keep != "last":
            raise ValueError(
                f"privacy.mode must be sealed, transfer.compression none and stop left out with the algorithm {DECENTRALISED}"
            )
        if self.min_sites < 3:
            raise ValueError(
                f"min_sites must be 3 or more with the algorithm {DECENTRALISED}: of two no minority can be gone"
            )
        return self

    @model_validator(mode="after")
    def _splittable(self) -> Self:
        if self.algorithm.name != SPLIT:
            return self
        if self.privacy.summed or self.transfer.compression != "none" or self.stop.patience or self.stop.keep != "last":
            raise ValueError(
                f"privacy.mode must be sealed, transfer.compression none and stop left out with the algorithm {SPLIT}"
            )
        if self.task.name != "classification" or self.network.name != "small_resnet":
            raise ValueError(
                f"task.name must be classification and network.name small_resnet with the algorithm {SPLIT}"
            )
        return self

    @property
    def vote_share(self) -> float:
        """More than this share of those who trained must accept a candidate; 0 when there is no vote."""
        asked = self.privacy.vote.share
        return (0.5 if self.privacy.summed else 0.0) if asked is None else asked

    @property
    def metric(self) -> str:
        """The name of the figure that tells how good a model is: AUC of classes, Dice of a segmentation."""
        return "auc" if self.task.name == "classification" else "dice"

    @property
    def cohort_rule(self) -> CohortRule:
        """The cohort rule with the task's label and classes filled in: what `Catalogue.cohort` is asked."""
        # a multi-label value names several classes; a segmentation's classes are its masks'
        free = self.task.multilabel or self.task.name == "segmentation"
        classes = () if free else tuple(self.task.classes)
        return self.cohort.model_copy(update={"label": self.task.label, "classes": classes})


class ProjectDocument(ProjectDraft):
    """A whole project: the draft and the coordinator who signs it."""

    coordinator: CoordinatorIdentity

    @model_validator(mode="after")
    def _reference_for_ensembles(self) -> Self:
        if (self.algorithm.name == "ensemble") != bool(self.reference.digests):
            raise ValueError("reference.digests must name studies for the algorithm ensemble, and for no other")
        return self

    @model_validator(mode="after")
    def _summed_sites(self) -> Self:
        keys = self.privacy.secure_aggregation.sites
        sound = all(len(base64.b64decode(key)) == 32 for key in keys.values()) and len(set(keys.values())) == len(keys)
        if self.privacy.summed and not (sound and len(keys) >= self.min_sites):
            raise ValueError(
                "privacy.secure_aggregation.sites must hold each hospital's own key, of min_sites hospitals or more"
            )
        return self

    @model_validator(mode="after")
    def _members(self) -> Self:
        if self.algorithm.name == DECENTRALISED and len(self.peers.sites) < self.min_sites:
            raise ValueError(
                "peers.sites must hold the keys of min_sites hospitals or more: enrol them before you sign"
            )
        return self

    def canonical(self) -> bytes:
        return canonical(self.model_dump(mode="json"))

    def digest(self) -> str:
        return hashlib.sha256(self.canonical()).hexdigest()


def canonical(payload: Mapping[str, Any]) -> bytes:
    """The one byte string of a JSON value: sorted keys, no spaces, ASCII. ValueError for NaN and infinity."""
    return json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


@dataclass(frozen=True)
class SignedProject:
    """A document with the exact payload that was signed. `read` and `sign` give only ones whose signature holds."""

    document: ProjectDocument
    payload: Mapping[str, Any]
    signature: bytes

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the canonical JSON of the payload: the project's name everywhere."""
        return hashlib.sha256(canonical(self.payload)).hexdigest()

    def file_bytes(self) -> bytes:
        """The file hospitals receive."""
        whole = {
            "format": FORMAT,
            "digest": self.digest,
            "project": self.payload,
            "signature": base64.b64encode(self.signature).decode(),
        }
        return json.dumps(whole, indent=1, ensure_ascii=False).encode() + b"\n"

    def verify(self, where: str = "project") -> Self:
        """This project. Raises SignatureError when its signature is not by the coordinator it names."""
        try:
            key = Ed25519PublicKey.from_public_bytes(self.document.coordinator.signing_key)
            key.verify(self.signature, _SIGN + bytes.fromhex(self.digest))
        except (InvalidSignature, ValueError):
            raise SignatureError(
                f"The {where} is not signed by {self.document.coordinator.name!r} (bad signature, or changed after signing):"
                " ask the coordinator for the file again."
            ) from None
        return self

    @classmethod
    def read(cls, source: Path | bytes) -> SignedProject:
        """A project file, checked and verified.

        Raises ProjectError for a file that is none (naming the wrong key), SignatureError for a bad signature or digest.
        """
        where = f"project file {source}" if isinstance(source, Path) else "project"
        whole = _json(_bytes(source, where), where)
        if not isinstance(whole, dict) or whole.get("format") != FORMAT:
            raise ProjectError(
                f"The {where} is not a signed project (format {FORMAT}): sign a draft with `fedpacs project sign`."
            )
        if set(whole) != {"format", "digest", "project", "signature"} or not isinstance(whole["project"], dict):
            raise ProjectError(f"The {where} must hold format, digest, project and signature only: ask for it again.")
        document = validated(ProjectDocument, whole["project"], where)
        try:
            signature = base64.b64decode(str(whole["signature"]), validate=True)
        except ValueError:
            signature = b""
        project = cls(document, whole["project"], signature).verify(where)
        if project.digest != whole["digest"]:
            raise SignatureError(f"The {where} names a digest that is not its own: ask the coordinator for it again.")
        return project


def sign(document: ProjectDocument, signer: Ed25519PrivateKey) -> SignedProject:
    """The document signed with the coordinator's key, every setting spelt out. SignatureError for another's key."""
    payload = document.model_dump(mode="json")
    try:
        canonical(payload)
    except ValueError:
        raise ProjectError(
            "The project holds an infinite number or NaN, which JSON has not: mend its settings."
        ) from None
    signature = signer.sign(_SIGN + hashlib.sha256(canonical(payload)).digest())
    return SignedProject(document, payload, signature).verify()


def read_draft(path: Path) -> ProjectDraft:
    """A draft in TOML. Raises ProjectError naming file, key and what is wrong."""
    where = f"project draft {path}"
    try:
        values = tomllib.loads(_bytes(path, where).decode("utf-8"))
    except UnicodeDecodeError:
        raise ProjectError(f"The {where} is not text in UTF-8: save it as such.") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ProjectError(f"The {where} is not valid TOML: {error}; mend that line.") from None
    return validated(ProjectDraft, values, where)


def changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two payloads, one "key: old → new" each, in key order."""
    found: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        name, before, after = f"{prefix}{key}", old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += changes(before, after, f"{name}.")
        elif before != after:
            found.append(f"{name}: {_short(before)} → {_short(after)}")
    return found


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _bytes(source: Path | bytes, where: str) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        try:
            if source.is_file() and source.stat().st_size > MAX_BYTES:
                raise ProjectError(f"The {where} is larger than 1 MiB, so it is no project: name another file.")
            data = source.read_bytes()
        except FileNotFoundError:
            raise ProjectError(f"The {where} does not exist: check the path.") from None
        except OSError as error:
            raise ProjectError(f"The {where} cannot be read ({error.strerror}): check its permissions.") from None
    if len(data) > MAX_BYTES:
        raise ProjectError(f"The {where} is larger than 1 MiB, so it is no project: ask the coordinator for it again.")
    return data


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else "it is not JSON"
        raise ProjectError(f"The {where} cannot be used ({reason}): ask the coordinator for it again.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; two readers may disagree about one that names a key twice, so it is refused."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def validated(model: type[M], values: Mapping[str, Any], where: str) -> M:
    """`values` as a document. Raises ProjectError naming `where` and the first wrong key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        told = f"{key}: {message[:1].lower()}{message[1:]}" if key else message
        raise ProjectError(f"The {where} is wrong at {told}; mend it there.") from None
