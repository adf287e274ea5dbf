"""Takes one identified object across: open, judge, rewrite, verify. Pure: bytes in, Outcome out."""

from __future__ import annotations

import io
import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from anonymizer.errors import InputError, Malformed, PixelError
from anonymizer.faces.which import face_of, lone_slice
from anonymizer.layout import Layouts
from anonymizer.letters import may_hold_letters
from anonymizer.model import Outcome, PixelStep
from anonymizer.pixelstep import clean_picture
from anonymizer.plan import Planner, Step
from anonymizer.profile import Profile
from anonymizer.pseudonym import Pseudonyms
from anonymizer.rewrite import Rewriter
from anonymizer.verify import residual
from anonymizer.walk import DEFLATED, PIXEL_DATA, Fragments, deflate, open_file

IMPLEMENTATION_UID = b"2.25.226371548172338217265138715837492016523"
IMPLEMENTATION_NAME = b"FEDPACS_0.1"
_MAP_ABOVE = 1 << 20
_SMALL_PICTURE = 4096
_DIRECTORY = "1.2.840.10008.1.3.10"
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

_COVERED = Step("pixels", "C", "Clean Pixel Data Option: burned-in text was covered", "")
_NO_PICTURE = frozenset(["SEG", "RTDOSE", "REG", "RWV", "PR", "KO", "SR"])  # their cells are numbers, not gray values

_TEXT_ALWAYS = frozenset(["US", "IVUS", "SC", "OT", "DOC", "ECG"])
_TEXT_OFTEN = frozenset(
    ["CR", "DX", "MG", "XA", "RF", "IO", "PX", "ES", "XC", "OP", "GM", "SM", "HC", "DG", "LS", "TG", "BI", "EC"]
)


class Deidentifier:
    """De-identifies objects under one profile and key; safe to use again and again, not from several threads at once.

    ``pixel_step`` takes the bytes of an object whose picture may hold text and gives (the bytes with a clean picture, "")
    or (None, the reason); by default the one shipped here, or none under a profile with ``pixels = "withhold"``, which
    quarantines such objects.

    Faces go from whole series at once. ``series=True`` leaves that to the caller, who must hand every output whose
    ``face`` is not empty to `anonymizer.faces.series.deface`; else each object counts as a series of its own.
    """

    def __init__(
        self,
        profile: Profile,
        key: bytes,
        uid_root: str = "2.25",
        pixel_step: PixelStep | None = None,
        series: bool = False,
    ) -> None:
        self.series = series
        self.profile, self.pseudonyms = profile, Pseudonyms(key, uid_root)
        self.pixel_step = pixel_step or (clean_picture if profile.pixels == "clean" else None)
        self._planners: dict[str, Planner] = {}
        self._layouts = Layouts()

    def patient_pseudonym(self, patient_id: str, issuer: str = "") -> str:
        """The pseudonym that stands for a patient id."""
        return self.pseudonyms.patient(patient_id, issuer if self.profile.issuer_matters else "")

    def uid(self, original: str) -> str:
        """The UID that stands for an original one."""
        return original if "uids" in self.profile.options else self.pseudonyms.uid(original)

    def date_shift_days(self, patient_id: str) -> int:
        """By how many days (negative) every date of a patient is moved."""
        return self.pseudonyms.date_shift_days(patient_id)

    def deidentify(self, data: bytes | memoryview | Path) -> Outcome:
        """The outcome for one object; bad input gives status "rejected" or "quarantined", never an exception.

        Raises OSError when a path cannot be read.
        """
        if isinstance(data, Path):
            data = read(data)
        try:
            return self._deidentify(data)
        except PixelError as error:
            return Outcome("quarantined", str(error))
        except InputError as error:
            return Outcome("rejected", str(error))
        except (struct.error, RecursionError):
            return Outcome("rejected", "The file's structure cannot be followed.")

    def _deidentify(self, data: bytes | memoryview) -> Outcome:
        file = open_file(data, self._layouts)
        rewriter = Rewriter(file, self.profile, self.pseudonyms, self._planners)
        reason = _withheld(rewriter)
        cleaned_pixels = covered = False
        if not reason and self._picture_may_tell(rewriter):
            if self.pixel_step is None:
                reason = "its picture may hold burned-in text, which is not looked at here"
            else:
                given = bytes(data)
                cleaned, reason = self.pixel_step(given)
                if cleaned is not None:
                    covered = cleaned is not given
                    file = open_file(cleaned)
                    rewriter = Rewriter(file, self.profile, self.pseudonyms, self._planners)
                    cleaned_pixels = True
        outcome = Outcome("quarantined" if reason else "ok", reason)
        sop_uid, study_uid = rewriter.sop_uid, rewriter.top_text(0x0020000D)
        if not sop_uid:
            raise Malformed("The object has no SOP Instance UID.")
        outcome.sop_instance_uid = self.uid(sop_uid)
        outcome.study_instance_uid = self.uid(study_uid) if study_uid else ""
        outcome.patient = rewriter.values.patient
        if reason:
            return outcome
        rewriter.picture_cleaned = cleaned_pixels
        if "faces" in self.profile.options and (self.series or not lone_slice(rewriter)):
            outcome.face = face_of(rewriter)
        rewriter.face_cleaned = bool(outcome.face)
        parts = rewriter.parts()
        if covered:
            rewriter.done[PIXEL_DATA] = _COVERED
        finish(outcome, rewriter, parts)
        if outcome.status == "ok" and rewriter.twin is None:
            self._layouts.learn(rewriter)
        if outcome.face and outcome.status == "ok" and not self.series:
            from anonymizer.faces.series import deface_alone

            deface_alone(outcome)
        return outcome

    def _picture_may_tell(self, rw: Rewriter) -> bool:
        """Whether text may be burned into the picture, as far as the header tells (PS3.15 E.3.1)."""
        if PIXEL_DATA not in rw.top or self.profile.pixels == "trust":
            return False
        if rw.top_text(0x00280301).upper() == "YES":
            return True
        if rw.top_number(0x00280100) == 1:
            return False
        kinds, modality = rw.top_text(0x00080008).upper(), rw.top_text(0x00080060).upper()
        if rw.sop_class.startswith(_SECONDARY_CAPTURE) and rw.sop_class[len(_SECONDARY_CAPTURE) :][:1] in ("", "."):
            return True
        if "SCREEN SAVE" in kinds or "SCREENSAVE" in kinds or modality in _TEXT_ALWAYS:
            return True
        if self.profile.pixels != "clean":
            return False
        if modality in _NO_PICTURE:
            return False
        if modality in _TEXT_OFTEN:
            return not self._trusted(rw)
        return "SECONDARY" in kinds.split("\\")[:2] or _hints_at_letters(rw)

    def _trusted(self, rw: Rewriter) -> bool:
        return self.profile.trust_burned_in_no and rw.top_text(0x00280301).upper() == "NO"


def _hints_at_letters(rw: Rewriter) -> bool:
    """Whether the gray values of a scan look as if letters were burned in; what cannot be decoded gives no hint."""
    start, stop, items = rw.top[PIXEL_DATA][3:]
    bits, rows, columns = rw.top_number(0x00280100), rw.top_number(0x00280010), rw.top_number(0x00280011)
    if bits not in (8, 16) or rw.top_number(0x00280002, 1) != 1 or not rows or not columns:
        return False
    if items is not None:
        return _decoded_hints(rw.data)
    kind = np.dtype(f"{'<' if rw.walker.little else '>'}{'i' if rw.top_number(0x00280103) else 'u'}{bits // 8}")
    count = (stop - start) // (kind.itemsize * rows * columns)
    cells = np.frombuffer(rw.data[start:stop], kind, count * rows * columns)
    return may_hold_letters(cells.reshape(count, rows, columns))


def _decoded_hints(data: memoryview) -> bool:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    from anonymizer.pixels.redact import frames

    try:
        return may_hold_letters(frames(dcmread(io.BytesIO(data), force=True)))
    except (PixelError, InvalidDicomError, ValueError, AttributeError, TypeError, NotImplementedError):
        return False


def _withheld(rw: Rewriter) -> str:
    if rw.sop_class == _DIRECTORY or rw.file.elements[0][0] >> 16 == 0x0004:
        return "a DICOMDIR lists patients and files; index the de-identified files anew"
    return ""


def finish(outcome: Outcome, rw: Rewriter, parts: list[bytes | memoryview]) -> None:
    """Verify the parts and complete the outcome: output, facts, actions; or quarantine it."""
    streams: list[bytes | memoryview] = []
    small = []
    offset = None
    meta = file_meta(rw, outcome.sop_instance_uid)
    position = len(meta)
    for part in parts:
        if part is rw.picture:
            offset = position
        if part is rw.picture and len(part) > _SMALL_PICTURE:
            pass  # gray values are not searched as text
        elif len(part) > 65536:
            streams.append(part)
        else:
            small.append(bytes(part))
        position += len(part)
    outcome.actions = rw.actions()
    outcome.facts = facts(rw, outcome, offset)
    allowed = rw.private.kept_creators
    header = b"".join(small)
    for creator in allowed:
        header = header.replace(creator, b"")
    left = residual(meta[128:] + header, streams, rw.values.identity, rw.values.uids)
    if left:
        outcome.status, outcome.reason = "quarantined", f"{left} was still found in the output"
        return
    if rw.file.deflated:
        parts = [deflate(parts)]
    outcome.parts = [meta, *parts]


def file_meta(rw: Rewriter, sop_uid: str) -> bytes:
    """Preamble of zeros, prefix and a new file meta group (PS3.10 7.1)."""
    syntax = rw.file.transfer_syntax.encode()
    fields = ((2, rw.sop_class.encode("latin-1")), (3, sop_uid.encode()), (0x10, syntax), (0x12, IMPLEMENTATION_UID))
    body = struct.pack("<HH2sHIH2s", 2, 1, b"OB", 0, 2, 0x0100, b"")[:12] + b"\0\1"
    for element, value in fields:
        value += b"\0" * (len(value) & 1)
        body += struct.pack("<HH2sH", 2, element, b"UI", len(value)) + value
    name = IMPLEMENTATION_NAME + b" " * (len(IMPLEMENTATION_NAME) & 1)
    body += struct.pack("<HH2sH", 2, 0x13, b"SH", len(name)) + name
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(body)) + body


def facts(rw: Rewriter, outcome: Outcome, offset: int | None) -> dict[str, Any]:
    """De-identified facts for a catalogue; nothing in it is an identified value."""
    age = rw.top_text(0x00101010)
    years = None
    if len(age) == 4 and age[:3].isdigit() and age[3] in "DWMY" and "patient" in rw.profile.options:
        years = min(90, int(int(age[:3]) / {"D": 365.25, "W": 52.18, "M": 12, "Y": 1}[age[3]]))
    series = rw.top_text(0x0020000E)
    native = offset is not None and not rw.file.deflated and rw.file.transfer_syntax != DEFLATED
    pixels = rw.top.get(PIXEL_DATA)
    return {
        "modality": rw.top_text(0x00080060)[:16],
        "body_part": rw.clean_fact(0x00180015),
        "manufacturer": rw.clean_fact(0x00080070),
        "view": rw.clean_fact(0x00185101),
        "sex": rw.top_text(0x00100040)[:1] if "patient" in rw.profile.options else "",
        "age_years": years,
        "rows": rw.top_number(0x00280010) or None,
        "columns": rw.top_number(0x00280011) or None,
        "frames": rw.top_number(0x00280008, 1) or 1,
        "sop_class": rw.sop_class,
        "transfer_syntax": rw.file.transfer_syntax,
        "series_uid": rw.values.pseudonyms.uid(series) if series and "uids" not in rw.profile.options else series,
        "burned_in": rw.top_text(0x00280301).upper() == "YES" and not rw.picture_cleaned,
        "pixel_offset": offset if native else None,
        "pixel_length": pixels[4] - pixels[3] if native and pixels and not isinstance(pixels[5], Fragments) else None,
    }


def read(path: Path) -> bytes | memoryview:
    """A file's bytes; a large file is mapped, so that memory does not grow with it. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(handle).st_size
        if size > _MAP_ABOVE:
            return memoryview(mmap.mmap(handle, size, access=mmap.ACCESS_READ))
        data = os.read(handle, size + 1)
        if len(data) == size:
            return data
        pieces = [data]
        while piece := os.read(handle, _MAP_ABOVE):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        os.close(handle)
