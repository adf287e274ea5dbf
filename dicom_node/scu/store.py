"""C-STORE: files sent byte for byte, over as few associations as their SOP classes and transfer syntaxes allow (PS3.4 B)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pynetdicom import _config
from pynetdicom.association import Association

from dicom_node.errors import InputError
from dicom_node.scu.peer import Peer, associate
from dicom_node.spool import part10

_MOST_CONTEXTS = 128  # PS3.8: context identifiers are the odd numbers below 256

# Files are streamed as they are, never decoded and encoded again; module-wide, since pynetdicom has no other switch.
_config.STORE_SEND_CHUNKED_DATASET = True

Progress = Callable[[Path, str], None]
_Kind = tuple[str, str]


@dataclass
class SendReport:
    """What became of each file: sent, or {file: why not}."""

    peer: str
    sent: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


def send_files(
    peer: Peer, files: Sequence[Path], calling: str = "FEDPACS", timeout: float = 60.0, progress: Progress | None = None
) -> SendReport:
    """Send Part 10 files. A file that cannot be sent is reported and the others go on.

    Raises UnreachableError or RefusedError when the peer cannot be associated with at all.
    """
    report = SendReport(str(peer))

    def tell(path: Path, why: str) -> None:
        if why:
            report.failed[path] = why
        else:
            report.sent.append(path)
        if progress is not None:
            progress(path, why)

    for kinds, batch in _batches(_sorted_by_kind(files, tell)):
        with associate(peer, [(sop_class, [syntax]) for sop_class, syntax in kinds], calling, timeout) as association:
            for path, kind in batch:
                tell(path, _send(association, path, kind))
    return report


def _sorted_by_kind(files: Sequence[Path], tell: Progress) -> list[tuple[Path, _Kind]]:
    found = []
    for path in files:
        try:
            with open(path, "rb") as file:
                meta = part10.parse(file.read(64 << 10))
            found.append((path, (meta.sop_class, meta.transfer_syntax)))
        except OSError as error:
            tell(path, f"it cannot be read ({error.strerror})")
        except part10.Part10Error as error:
            tell(path, str(error))
    return found


def _batches(files: list[tuple[Path, _Kind]]) -> Iterator[tuple[list[_Kind], list[tuple[Path, _Kind]]]]:
    kinds = list(dict.fromkeys(kind for _, kind in files))
    for at in range(0, len(kinds), _MOST_CONTEXTS):
        some = kinds[at : at + _MOST_CONTEXTS]
        yield some, [(path, kind) for path, kind in files if kind in set(some)]


def _send(association: Association, path: Path, kind: _Kind) -> str:
    """'' when the peer has it, else why not."""
    if not association.is_established:
        return "the peer ended the association; send it again"
    accepted = {(c.abstract_syntax, c.transfer_syntax[0]) for c in association.accepted_contexts}
    if kind not in accepted:
        return f"the peer does not take SOP class {kind[0]} in transfer syntax {kind[1]}"
    try:
        status = association.send_c_store(path)
    except (ValueError, RuntimeError, OSError, AttributeError) as error:
        return f"it could not be sent ({type(error).__name__})"
    if not status:
        return "the peer did not answer; send it again"
    code = int(status.Status)
    if code == 0 or code & 0xF000 == 0xB000:
        return ""
    return f"the peer refused it with status 0x{code:04X}"


def expand(sources: Sequence[Path]) -> list[Path]:
    """Files named, and all files below folders named, in order. Raises InputError for what does not exist."""
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            files += sorted(path for path in source.rglob("*") if path.is_file())
        elif source.is_file():
            files.append(source)
        else:
            raise InputError(f"{source} is neither a file nor a folder; name what is to be sent.")
    if not files:
        raise InputError("There is nothing to send in what was named; name Part 10 files or folders of them.")
    return files
