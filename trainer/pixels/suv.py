"""The factor from PET activity concentration (Bq/ml) to the standardised uptake value by body weight (g/ml).

SUVbw = concentration × body weight / (injected dose decayed to the reference time), after QIBA's vendor-neutral
pseudo-code. What is missing or contradicts itself is an error about this instance, never a guess.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from trainer.errors import PixelError

PET = "1.2.840.10008.5.1.4.1.1.128"


def is_activity(ds: Any) -> bool:
    """Whether an instance holds PET pixels in Bq/ml (Units (0054,1001) BQML)."""
    return str(ds.get("SOPClassUID", "")) == PET and str(ds.get("Units", "")) == "BQML"


def suv_factor(ds: Any) -> float:
    """g/ml per Bq/ml. Errors: PixelError names what is missing."""
    name = str(ds.SOPInstanceUID)
    corrections = {str(one) for one in ds.get("CorrectedImage") or []}
    if not {"ATTN", "DECY"} <= corrections:
        raise PixelError(f"PET instance {name} is not corrected for attenuation and decay; exclude its series")
    weight = _positive(ds, "PatientWeight", name)
    tracer = (ds.get("RadiopharmaceuticalInformationSequence") or [None])[0]
    if tracer is None:
        raise PixelError(f"PET instance {name} does not say what was injected; exclude its series")
    dose = _positive(tracer, "RadionuclideTotalDose", name)
    kind = str(ds.get("DecayCorrection", ""))
    if kind == "START":
        half_life = _positive(tracer, "RadionuclideHalfLife", name)
        dose *= 2.0 ** (-_elapsed(ds, tracer, name) / half_life)
    elif kind != "ADMIN":
        raise PixelError(f"PET instance {name} has decay correction {kind or 'unknown'}; exclude its series")
    return weight * 1000.0 / dose


def _positive(ds: Any, keyword: str, name: str) -> float:
    try:
        value = float(ds.get(keyword) or 0)
    except (TypeError, ValueError):
        value = 0.0
    if not 0 < value < float("inf"):
        raise PixelError(f"PET instance {name} has no usable {keyword}; exclude its series or send it with that value")
    return value


def _elapsed(ds: Any, tracer: Any, name: str) -> float:
    """Seconds from injection to the series' start; an injection given as a time of day may lie before midnight."""
    scan = _moment(ds.get("SeriesDate"), ds.get("SeriesTime"))
    acquired = _moment(ds.get("AcquisitionDate"), ds.get("AcquisitionTime"))
    if scan is None or (acquired is not None and acquired < scan):
        raise PixelError(f"PET instance {name} has no series time before its acquisition; exclude its series")
    given = str(tracer.get("RadiopharmaceuticalStartDateTime") or "")
    injected = _moment(given[:8], given[8:].split("+")[0].split("-")[0])
    if injected is None:
        injected = _moment(ds.get("SeriesDate"), tracer.get("RadiopharmaceuticalStartTime"))
        if injected is not None and injected > scan:
            injected -= timedelta(days=1)
    if injected is None or not 0 <= (scan - injected).total_seconds() < 86400:
        raise PixelError(f"PET instance {name} has no injection time within a day before its scan; exclude its series")
    return (scan - injected).total_seconds()


def _moment(date: Any, time: Any) -> datetime | None:
    if not date or not time:
        return None
    digits = str(time).split(".")
    try:
        whole = datetime.strptime(f"{date}{digits[0]:<06}", "%Y%m%d%H%M%S")
    except ValueError:
        return None
    fraction = float(f"0.{digits[1]}") if len(digits) > 1 and digits[1].isdigit() else 0.0
    return whole + timedelta(seconds=fraction)
