"""Decides from the header alone whether an object may be part of a volume that shows a face: "head", "maybe" or ""."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anonymizer.rewrite import Rewriter

_ANATOMY, _SHARED = 0x00082218, 0x52009229  # Anatomic Region Sequence, Shared Functional Groups Sequence

# CT, Enhanced CT, Legacy Converted Enhanced CT; MR, Enhanced MR, Enhanced MR Color, Legacy Converted; PET likewise.
VOLUMES = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("2", "2.1", "2.2", "4", "4.1", "4.3", "4.4", "128", "130", "128.1")
)
_HEAD_CODES = (
    frozenset(  # CID 4031 (SNOMED CT and the older SRT codes): head, brain, skull, face, orbit, sinus, ear, jaw, ...
        [
            *(
                "69536005",
                "12738006",
                "89546000",
                "89545001",
                "363654007",
                "2095001",
                "117590005",
                "70925003",
                "661005",
            ),
            *("T-D1100", "T-A0100", "T-11100", "T-D1200", "T-D1480", "T-22000", "T-AB000", "T-11180", "T-D1213"),
            *("774007", "T-D1000", "56329008", "T-B1000", "42575006", "T-A1900"),
        ]
    )
)
_MAYBE_CODES = frozenset(
    ["38266002", "T-D0010", "45048000", "T-D1600", "122494005", "T-11501"]
)  # whole body, neck, C-spine
_HEAD = re.compile(
    r"HEAD|BRAIN|SKULL|FAC(E|IAL)|ORBIT|SINUS(?!\s*(RHYTHM|VALSALVA))|(^|\W)(EARS?|IAC|IAM|TMJ|JAW|NPH|CIRCLE OF WILLIS)(\W|$)"
    r"|PITUITAR|SELLA|MANDIB|MAXILL|NEURO|CEREB|CRANI|(^|\W)CRAN|KOPF|SCH(AE|A|Ä)DEL|HIRN|(^|\W)(TETE|TÊTE|CABEZA|CRANEO|TESTA)|DENTAL"
    r"|TEMPORAL BONE|PETROUS|STROKE|MPRAGE|MP-RAGE|MP2RAGE|INTRACRAN|EEG|EPILEP|HIPPOCAMP"
)
_MAYBE = re.compile(
    r"NECK|WHOLE.?BODY|C.?SPINE|CERVICAL|CAROTID|HALS|(^|\W)WB(\W|$)|TRAUMA|BODY SCAN|SKULL.?BASE|VERTEX|THYROID|LARYN"
)
_ELSEWHERE = re.compile(
    r"CHEST|THORA|LUNG|ABDOM|PELVI|LIVER|KIDNEY|RENAL|HEART|CARD|BREAST|PROST|KNEE|FOOT|ANKLE|LEG|HIP(?!P)|HAND|WRIST"
    r"|ARM(\W|$)|ELBOW|SHOULDER|L.?SPINE|LUMBAR|T.?SPINE|SACR|COLON|BOWEL|SPLEEN|PANCREA|AORT|CORONARY|UTER|OVAR|BLADDER"
    r"|TIBIA|FEMUR|HUMER|FOREARM|FINGER|TOE|EXTREMITY|THIGH|CALF|RECTUM|MEDIAST"
)


_DESCRIPTIONS = (0x00081030, 0x0008103E, 0x00181030, 0x00321060, 0x00400254)


def face_of(rw: Rewriter) -> str:
    """`may_show_face` of an object that is being rewritten, from its identified header."""
    if rw.sop_class not in VOLUMES or 0x7FE00010 not in rw.top:
        return ""
    codes: frozenset[str] = frozenset()
    if _ANATOMY in rw.top or _SHARED in rw.top:
        codes = frozenset(_codes(rw, [rw.top[tag] for tag in (_ANATOMY, _SHARED) if tag in rw.top], 0))
    described = " ".join(filter(None, map(rw.top_text, _DESCRIPTIONS)))
    return may_show_face(rw.sop_class, rw.top_text(0x00080008), rw.top_text(0x00180015), codes, described)


def lone_slice(rw: Rewriter) -> bool:
    """Whether an object is a single axial or coronal slice, which alone shows no face; a sagittal one shows a profile."""
    if rw.top_number(0x00280008, 1) > 1 or rw.sop_class not in ("1.2.840.10008.5.1.4.1.1.2", *_CLASSIC):
        return False
    try:
        a = [float(v) for v in rw.top_text(0x00200037).split("\\")]
    except ValueError:
        return True
    if len(a) != 6:
        return True
    normal = [abs(a[(i + 1) % 3] * a[(i + 2) % 3 + 3] - a[(i + 2) % 3] * a[(i + 1) % 3 + 3]) for i in range(3)]
    return normal[0] < max(normal)


_CLASSIC = ("1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128")


def _codes(rw: Rewriter, elements: list[Any], depth: int) -> list[str]:
    """Code Values below the Anatomic Region Sequence or the Frame Anatomy Sequence (PS3.3 C.7.6.16.2.8)."""
    found = []
    for tag, _, _, start, stop, items in elements:
        if tag == 0x00080100 and depth:
            found.append(bytes(rw.data[start:stop]).strip(b" \0").decode("latin-1"))
        elif tag in (_ANATOMY, _SHARED, 0x00209071) and items is not None:
            for item in getattr(items, "items", ()):
                found += _codes(rw, item.elements, depth + (tag == _ANATOMY))
    return found


@lru_cache(maxsize=1024)
def may_show_face(sop_class: str, image_type: str, body_part: str, codes: frozenset[str], described: str) -> str:
    """ "head": its face must go or it is withheld; "maybe": the anatomy decides; "": no face, or not a volume.

    ``body_part``: Body Part Examined; ``codes``: Code Values of the Anatomic Region Sequence; ``described``: the study's,
    series' and protocol's descriptions. A CT localizer is one projection, not a volume.
    """
    if sop_class not in VOLUMES or (sop_class.endswith((".1.2", ".2.1", ".2.2")) and "LOCALIZER" in image_type.upper()):
        return ""
    part, words = body_part.upper(), described.upper().replace("_", " ")
    if codes & _HEAD_CODES or _HEAD.search(part) or part in ("EAR", "EYE", "JAW", "NOSE", "MOUTH", "CHEEK", "FOREHEAD"):
        return "head"
    if codes & _MAYBE_CODES or _MAYBE.search(part):
        return "maybe"
    if _HEAD.search(words):
        return "maybe" if part and _ELSEWHERE.search(part) else "head"
    if _MAYBE.search(words):
        return "maybe"
    return "" if _ELSEWHERE.search(part) or (not part and _ELSEWHERE.search(words)) else "maybe"
