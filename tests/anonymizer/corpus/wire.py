"""A second look at the bytes: escape sequences inside values, odd encodings, moved private blocks, times over midnight, what must stay."""

# ruff: noqa: E501 - a case reads better on one line
from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from itertools import count

import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from tests.anonymizer.corpus.generate import ROOT, base, encoded, item, privacy, retention, sequence, standing
from tests.anonymizer.corpus.hiding import PHI, code, insert
from tests.anonymizer.corpus.key import Case, Check, Seen, equal, gone, keeps, lacks, new_uid, shifted
from tests.anonymizer.corpus.people import PEOPLE

OWN = ("Quennell", "Tabitha")
PID = "MRN-7730418"
COMMENTS = 0x00204000
JIS = lambda text: text.encode("iso2022_jp")  # noqa: E731
# (what, person, character set, the bytes of Image Comments, what must be gone, what must still be there)
TEXTS: tuple[tuple[str, int, str, bytes, tuple[str, ...], str], ...] = (
    ("JIS in a sentence", 4, "\\ISO 2022 IR 87", b"nodule of " + JIS("山崎太郎吉") + b" seen", ("山崎", "太郎吉"), "nodule seen"),
    ("JIS, each character escaped", 4, "\\ISO 2022 IR 87", b"nodule " + b"".join(map(JIS, "山崎")) + b" seen", ("山崎",), "nodule seen"),
    ("JIS over lines", 4, "\\ISO 2022 IR 87", JIS("胸部") + b"\r\n" + JIS("山崎様") + b"\r\nstable", ("山崎",), "stable"),
    ("half-width kana", 4, "ISO 2022 IR 13\\ISO 2022 IR 87", "ﾔﾏｻﾞｷ nodule".encode("shift_jis"), ("ﾔﾏｻﾞｷ",), "nodule"),
    ("Korean in a sentence", 5, "\\ISO 2022 IR 149", b"\x1b$)Cnodule " + "황보길동".encode("euc_kr") + b" seen", ("황보", "길동"), "nodule seen"),
    ("Korean after a line end", 5, "\\ISO 2022 IR 149", b"nodule\r\n\x1b$)C" + "길동".encode("euc_kr") + b" seen", ("길동",), "nodule seen"),
    ("Chinese in a sentence", 6, "\\ISO 2022 IR 58", b"nodule \x1b$)A" + "欧阳小东".encode("gb2312") + b" seen", ("欧阳", "小东"), "nodule seen"),
    ("GBK", 6, "GBK", "结节 欧阳小东 seen".encode("gbk"), ("欧阳", "小东"), "结节 seen"),
    ("GB18030", 6, "GB18030", "结节 欧阳小东 seen".encode("gb18030"), ("欧阳", "小东"), "结节 seen"),
    ("Cyrillic by escape", 7, "ISO 2022 IR 100\\ISO 2022 IR 144", b"nodule \x1b-L" + "Люксембург".encode("iso8859-5") + b" seen", ("Люксембург",), "nodule seen"),
    ("Greek by escape", 8, "ISO 2022 IR 100\\ISO 2022 IR 126", b"nodule \x1b-F" + "Παπαδιαμάντης".encode("iso8859-7") + b" seen", ("Παπαδιαμάντης",), "nodule seen"),
    ("Latin 2", 1, "ISO_IR 101", "guzek Żółtowski Bartek".encode("iso8859-2"), ("Bartek", "Żółtowski"), "guzek"),
    ("decomposed accents", 9, "ISO_IR 192", "nodule Þo\u0301rarinsdo\u0301ttir seen".encode(), ("Þo\u0301rarinsdo", "rarinsd"), "nodule seen"),
    ("after a NUL", 0, "ISO_IR 100", b"nodule\0Quennell", ("Quennell",), "nodule"),
    ("UTF-16 in a text", 0, "ISO_IR 100", "Quennell nodule".encode("utf-16-le"), ("Quennell",), ""),
    ("undeclared UTF-8", 3, "", "Knoten Grünwäldchen gesehen".encode(), ("Grünwäldchen", "nwäldchen"), "Knoten gesehen"),
    ("EBCDIC is no text", 0, "ISO_IR 100", "Quennell".encode("cp500"), (), ""),
)  # fmt: skip


def texts(numbers: Iterator[int]) -> Iterator[Case]:
    for what, index, declared, raw, go, stay in TEXTS:
        person = PEOPLE[index]
        data = encoded(base(person, next(numbers)))
        data = insert(data, 0x00080005, b"CS", declared.encode()) if declared else data
        if b"\x1b-" in raw:  # the name, too, is written by escape sequence
            family = raw[raw.index(b"\x1b-") :].split(b" ")[0]
            data = insert(data, 0x00100010, b"PN", family)
        data = insert(data, COMMENTS, b"LT", raw)
        checks = privacy("text in odd bytes", *map(gone, go))
        if stay:
            checks += retention("text in odd bytes", keeps(stay, "ImageComments"))
        yield Case(
            f"bytes: {what}", data, [*checks, *retention("text in odd bytes", equal("CHEST", "BodyPartExamined"))]
        )


def _un(tag: int, content: bytes, undefined: bool) -> bytes:
    """An item sequence in implicit little endian under VR UN (PS3.5 6.2.2)."""
    items = struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content
    if undefined:
        items += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, b"UN", 0, 0xFFFFFFFF if undefined else len(items)) + items


def _implicit(tag: int, value: bytes) -> bytes:
    value += b" " * (len(value) & 1)
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


def _before(data: bytes, tag: int, element: bytes) -> bytes:
    from anonymizer.walk import open_file

    at = next((el[2] for el in open_file(data).elements if el[0] >= tag), len(data))
    return data[:at] + element + data[at:]


def unknown_sequences(numbers: Iterator[int]) -> Iterator[Case]:
    content = _implicit(0x00081150, b"1.2.840.10008.5.1.4.1.1.2\0") + _implicit(0x00081155, f"{ROOT}.0.1.5".encode())
    content += _implicit(0x00100010, b"Quennell^Tabitha") + _implicit(0x00081030, b"prior of Ravensworth, Ida MD: knee")
    inner = _implicit(0x00081030, b"knee of Quennell")
    nested = _implicit(0x00081115, struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner)
    for undefined in (False, True):
        for name, body in (("flat", content), ("nested", nested + content)):
            data = _before(encoded(base(PEOPLE[0], next(numbers))), 0x00081140, _un(0x00081140, body, undefined))
            checks = [*standing(PEOPLE[0]), *privacy("sequences as UN", gone(PHI), gone(OWN[0]), gone(f"{ROOT}.0.1.5"))]
            yield Case(f"UN {name} {undefined}", data, checks)


def deep(numbers: Iterator[int]) -> Iterator[Case]:
    """Ten levels down: a name, a date, a UID, a private block, a code that stays."""
    leaf = item(
        PatientName="Quennell^Tabitha", StudyDate="20190315", ReferencedSOPInstanceUID=f"{ROOT}.0.1.5", SeriesDescription="knee of Quennell",
        CodeValue="T-D1213", KVP="120",
    )  # fmt: skip
    leaf.add_new(0x00291010, "OB", b"Quennell private")
    leaf.add_new(0x00290010, "LO", "SIEMENS CSA HEADER")
    path: tuple[str | int, ...] = ()
    ds = leaf
    for _ in range(10):
        ds, path = item(ReferencedSeriesSequence=sequence(ds)), ("ReferencedSeriesSequence", 0, *path)
    whole = base(PEOPLE[0], next(numbers))
    whole.ReferencedSeriesSequence = ds.ReferencedSeriesSequence
    checks = privacy(
        "ten levels down", gone(OWN[0]), new_uid(f"{ROOT}.0.1.5", *path, "ReferencedSOPInstanceUID"), shifted(PID, "20190315", *path, "StudyDate")
    ) + retention("ten levels down", keeps("knee", *path, "SeriesDescription"), equal("T-D1213", *path, "CodeValue"), equal("120", *path, "KVP"))  # fmt: skip
    for syntax in (None, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
        yield Case(f"deep {syntax}", in_syntax(whole, syntax), [*standing(PEOPLE[0]), *checks])


def in_syntax(ds: FileDataset, syntax: str | None) -> bytes:
    if syntax is None:
        return encoded(ds)
    copy = pydicom.dcmread(io.BytesIO(encoded(ds)))
    copy.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian and "PixelData" in copy:
        copy.PixelData = b"".join(copy.PixelData[i : i + 2][::-1] for i in range(0, len(copy.PixelData), 2))
    out = io.BytesIO()
    pydicom.dcmwrite(out, copy, enforce_file_format=True)
    return out.getvalue()


def around(numbers: Iterator[int]) -> Iterator[Case]:
    """Before, between and behind the data set."""
    whole = encoded(base(PEOPLE[0], next(numbers)))
    everyone = [*standing(PEOPLE[0]), *privacy("around the data set", gone(PHI), *map(gone, OWN))]
    yield Case("preamble", b"II*\0 Ravensworth, Quennell ".ljust(128, b"\0") + whole[128:], everyone)
    yield Case("appended text", whole + b"\0\0Ravensworth Quennell Tabitha\0", everyone)
    yield Case("appended file", whole + whole, everyone)
    padding = struct.pack("<HH2sHI", 0xFFFC, 0xFFFC, b"OB", 0, 12) + b"Ravensworth "
    yield Case("data set trailing padding", whole + padding, everyone)
    ds = base(PEOPLE[0], next(numbers))
    ds.file_meta.SourceApplicationEntityTitle, ds.file_meta.SendingApplicationEntityTitle = "RAVENSWORTH", "QUENNELL"
    ds.file_meta.ReceivingApplicationEntityTitle, ds.file_meta.ImplementationVersionName = "RAVENSWORTH", "RAVENSWORTH"
    ds.file_meta.SourcePresentationAddress = "http://ravensworth.org"
    ds.file_meta.PrivateInformationCreatorUID, ds.file_meta.PrivateInformation = f"{ROOT}.1", b"Ravensworth Quennell"
    yield Case("file meta", encoded(ds), everyone)


def blocks(numbers: Iterator[int]) -> Iterator[Case]:
    """Private blocks at other places than usual, and two creators in one group."""
    for block in (0x10, 0x42, 0xFF):
        ds = base(PEOPLE[0], next(numbers))
        ds.add_new(0x00190000 | block, "LO", "SIEMENS MR HEADER")
        ds.add_new(0x00190000 | block << 8 | 0x0C, "IS", "1000")
        ds.add_new(0x00190000 | block << 8 | 0x0D, "CS", "DIAGONAL")
        ds.add_new(0x00190000 | block << 8 | 0xEE, "LO", "Ravensworth")
        other = 0x11 if block != 0x11 else 0x12
        ds.add_new(0x00190000 | other, "LO", f"{PHI} ward 7")
        ds.add_new(0x00190000 | other << 8 | 0x0C, "LO", "Quennell")
        checks = privacy("moved blocks", gone(PHI), gone(OWN[0])) + retention(
            "moved blocks", equal("1000", 0x00190000 | block << 8 | 0x0C)
        )
        yield Case(f"block {block:02X}", encoded(ds), [*standing(PEOPLE[0]), *checks])
    ds = base(PEOPLE[0], next(numbers))
    inside = Dataset()
    inside.add_new(0x00190055, "LO", "SIEMENS MR HEADER")
    inside.add_new(0x0019550C, "IS", "800")
    inside.add_new(0x00195577, "UT", "Quennell, Ravensworth")
    ds.ReferencedImageSequence = sequence(inside)
    checks = privacy("moved blocks", gone(PHI), gone(OWN[0])) + retention(
        "moved blocks", equal("800", "ReferencedImageSequence", 0, 0x0019550C)
    )
    yield Case("block in an item", encoded(ds), [*standing(PEOPLE[0]), *checks])


def _kept_interval(first: tuple[object, ...], second: tuple[object, ...]) -> Callable[[Seen], bool]:
    """The seconds between two DT values are what they were."""
    import datetime

    def moment(ds: Dataset, path: tuple[object, ...]) -> datetime.datetime:
        here: object = ds
        for step in path:
            here = here[step] if isinstance(step, int) else here[step].value  # type: ignore[index]
        return datetime.datetime.strptime(str(here)[:14], "%Y%m%d%H%M%S")

    def judge(seen: Seen) -> bool:
        if seen.at(first) is None or seen.at(second) is None:
            return False
        before, after = (moment(ds, second) - moment(ds, first) for ds in (seen.original, seen.ds))
        return before == after

    return judge


def times(numbers: Iterator[int]) -> Iterator[Case]:
    """PET over midnight, zones, lists, fractions."""
    ds = base(PEOPLE[0], next(numbers), sop_class="1.2.840.10008.5.1.4.1.1.128", modality="PT")
    ds.RadiopharmaceuticalInformationSequence = sequence(
        item(RadiopharmaceuticalStartTime="235000.00", RadiopharmaceuticalStartDateTime="20190314235000.00", RadionuclideTotalDose="370000000", RadionuclideHalfLife="6586.2", Radiopharmaceutical="FDG -- fluorodeoxyglucose")
    )  # fmt: skip
    ds.AcquisitionDate, ds.AcquisitionTime, ds.AcquisitionDateTime = (
        "20190315",
        "005012.123456",
        "20190315005012.123456+0100",
    )
    ds.TimezoneOffsetFromUTC, ds.DecayCorrection, ds.Units = "+0100", "START", "BQML"
    ds.DateOfSecondaryCapture, ds.FrameReferenceTime, ds.ActualFrameDuration = "20190316", "0", "120000"
    where = ("RadiopharmaceuticalInformationSequence", 0)
    start = (*where, "RadiopharmaceuticalStartDateTime")
    checks = privacy("PET times", shifted(PID, "20190314235000.00", *start), shifted(PID, "20190315005012.123456+0100", "AcquisitionDateTime")) + retention(
        "PET times", equal("235000.00", *where, "RadiopharmaceuticalStartTime"), equal("005012.123456", "AcquisitionTime"), equal("+0100", "TimezoneOffsetFromUTC"),
        equal("370000000", *where, "RadionuclideTotalDose"), equal("6586.2", *where, "RadionuclideHalfLife"), keeps("FDG", *where, "Radiopharmaceutical"),
        _kept_interval(start, ("AcquisitionDateTime",)), equal("START", "DecayCorrection"), equal("BQML", "Units"), equal("120000", "ActualFrameDuration"),
    )  # fmt: skip
    yield Case("PET over midnight", encoded(ds), [*standing(PEOPLE[0]), *checks])
    ds = base(PEOPLE[0], next(numbers))
    ds.DateOfLastCalibration, ds.TimeOfLastCalibration = ["20181231", "20190101"], ["235959.999999", "000000"]
    ds.ImageComments = "calibrated 20181231 and 2019-01-01"
    checks = privacy("lists of dates", lacks("20181231", "DateOfLastCalibration"), gone("2019-01-01")) + retention(
        "lists of dates", equal(["235959.999999", "000000"], "TimeOfLastCalibration"), _days_apart
    )
    yield Case("dates in a list", encoded(ds), [*standing(PEOPLE[0]), *checks])


def _days_apart(seen: Seen) -> bool:
    import datetime

    days = list(map(str, seen.at(("DateOfLastCalibration",)) or []))
    one, *others = (datetime.date(int(v[:4]), int(v[4:6]), int(v[6:8])) for v in days) if len(days) == 2 else (None,)
    return bool(others) and one is not None and (others[0] - one).days == 1


ACQUISITION: dict[str, object] = {
    "KVP": "120", "ExposureTime": "500", "XRayTubeCurrent": "250", "Exposure": "125", "SliceThickness": "1.25", "SpacingBetweenSlices": "1.0", "DataCollectionDiameter": "500",
    "ReconstructionDiameter": "350", "GantryDetectorTilt": "0", "TableHeight": "155.5", "RotationDirection": "CW", "FilterType": "BODY FILTER", "ConvolutionKernel": "B31f", "PatientPosition": "HFS",
    "ImagePositionPatient": [-175.0, -175.5, 20.25], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "SliceLocation": "20.25", "PixelSpacing": [0.68, 0.68], "RescaleSlope": "1", "RescaleIntercept": "-1024",
    "WindowCenter": ["40", "-600"], "WindowWidth": ["400", "1500"], "WindowCenterWidthExplanation": ["MEDIASTINUM", "LUNG"], "CTDIvol": 12.34, "SpiralPitchFactor": 0.984, "ContrastBolusAgent": "Omnipaque 350",
    "ContrastBolusVolume": "100", "ContrastBolusRoute": "IV", "PatientSize": "1.78", "PatientWeight": "94", "SeriesNumber": "94", "AcquisitionNumber": "2", "InstanceNumber": "90", "EchoTime": "94",
    "RepetitionTime": "4500", "FlipAngle": "12", "MagneticFieldStrength": "3", "SequenceName": "*tfl3d1_16ns", "ScanningSequence": ["SE", "IR"], "SequenceVariant": "SK", "ScanOptions": "PFP", "MRAcquisitionType": "3D",
    "Laterality": "L", "ViewPosition": "AP", "ProtocolName": "t1_mprage_sag_p2_iso", "BodyPartExamined": "CHEST", "SoftwareVersions": ["syngo MR E11", "VB19A"], "ExposureControlMode": "AUTO", "LossyImageCompression": "00",
}  # fmt: skip


def acquisition(numbers: Iterator[int]) -> Iterator[Case]:
    """What a study is read and trained by stays, for people whose number or name looks like it."""
    for person in (PEOPLE[0], PEOPLE[10], PEOPLE[11]):
        ds = base(person, next(numbers))
        for keyword, value in ACQUISITION.items():
            setattr(ds, keyword, value)
        checks = retention("acquisition values", *(equal(value, keyword) for keyword, value in ACQUISITION.items()))
        yield Case(f"acquisition {person.pid}", encoded(ds), [*standing(person), *checks])


def lists(numbers: Iterator[int]) -> Iterator[Case]:
    """Several values in one attribute: only the one that identifies goes."""
    ds = base(PEOPLE[0], next(numbers))
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ProtocolName = "1.2 Chest Routine Quennell 5/5"
    ds.RequestedProcedureDescription = "knee " * 20 + "Quennell"
    ds.OtherPatientNames, ds.OtherPatientIDs = "Zamorano^Tabitha", "ZZ99812"
    ds.PatientMotherBirthName = "Featherstonehaugh^Maud"
    ds.SeriesDescription = "Axial 1.5 mm lung"
    ds.ImageComments = "mother Featherstonehaugh, formerly Zamorano, ZZ99812; stable"
    ds.ProcedureCodeSequence = code("CT-CHEST", "CT chest for Quennell", "99LOCAL")
    ds.ReasonForStudy = "R/O PE\r\nQuennell, T.\r\nprior CABG"
    checks = privacy("several values", gone("Zamorano"), gone("Featherstonehaugh"), gone("ZZ99812"), gone(OWN[0])) + retention(
        "several values", keeps("Chest Routine 5/5", "ProtocolName"), keeps("knee knee", "RequestedProcedureDescription"), keeps("stable mother", "ImageComments"),
        keeps("CT chest", "ProcedureCodeSequence", 0, "CodeMeaning"), equal("CT-CHEST", "ProcedureCodeSequence", 0, "CodeValue"), equal("99LOCAL", "ProcedureCodeSequence", 0, "CodingSchemeDesignator"),
        keeps("R/O PE CABG", "ReasonForStudy"),
    )  # fmt: skip
    yield Case("several values", encoded(ds), [*standing(PEOPLE[0]), *checks])


def model(numbers: Iterator[int]) -> Iterator[Case]:
    """Encapsulated models and other documents give way to empty ones of their kind."""
    kinds = (("104.3", "model/stl", b"Ravensworth knee".ljust(80) + struct.pack("<I", 0)), ("104.4", "model/obj", b"# Ravensworth\nv 0 0 0\n"), ("104.5", "model/mtl", b"# Ravensworth\nnewmtl a\n"))  # fmt: skip
    for tail, mime, content in kinds:
        ds = base(PEOPLE[0], next(numbers), sop_class=f"1.2.840.10008.5.1.4.1.1.{tail}", modality="M3D", pixels=False)
        ds.MIMETypeOfEncapsulatedDocument, ds.DocumentTitle = mime, "knee of Quennell"
        ds.EncapsulatedDocument = content + b" " * (len(content) & 1)
        checks: list[Check] = privacy("models", gone(PHI), gone(OWN[0])) + retention(
            "models",
            equal(mime, "MIMETypeOfEncapsulatedDocument"),
            keeps("knee", "DocumentTitle"),
            lambda seen: len(seen.ds.EncapsulatedDocument) > 1,
        )
        yield Case(f"model {mime}", encoded(ds), [*standing(PEOPLE[0]), *checks])


def cases(start: int) -> Iterator[Case]:
    numbers = count(start + 1)
    for make in (texts, unknown_sequences, deep, around, blocks, times, acquisition, lists, model):
        yield from make(numbers)
