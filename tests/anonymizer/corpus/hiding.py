"""Odd places: wrong VRs, UN, numbers that are text, private blocks, SR by concept, RT, presentation states, documents."""

# ruff: noqa: E501 - a case reads better on one line
from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence

from anonymizer.walk import open_file
from tests.anonymizer.corpus.generate import ROOT, base, encoded, item, privacy, retention, sequence
from tests.anonymizer.corpus.key import Case, Check, equal, gone, keeps, lacks, new_uid, present, shifted
from tests.anonymizer.corpus.people import PEOPLE

PHI = "Ravensworth"
LONG = (b"OB", b"OW", b"UN", b"UT", b"UR", b"OF")
CT = "1.2.840.10008.5.1.4.1.1.2"
STUDY, SERIES, IMAGE, FRAME = f"{ROOT}.0", f"{ROOT}.0.1", f"{ROOT}.0.1.5", f"{ROOT}.0.7"


def insert(raw: bytes, tag: int, vr: bytes, value: bytes) -> bytes:
    """The file with one element put in place (or in the place of another), whatever its VR ought to be."""
    value += b" " * (len(value) & 1)
    form, extra = ("<HH2sHI", (0,)) if vr in LONG else ("<HH2sH", ())
    element = struct.pack(form, tag >> 16, tag & 0xFFFF, vr, *extra, len(value)) + value
    for el in open_file(raw).elements:
        if el[0] >= tag:
            return raw[: el[2]] + element + raw[el[4] if el[0] == tag else el[2] :]
    return raw + element


def code(value: str, meaning: str, scheme: str = "DCM") -> Sequence:
    return sequence(item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning))


_NAMED = struct.pack("<HHI", 0xFFFE, 0xE000, 24) + struct.pack("<HHI", 0x0010, 0x0010, 16) + b"Quennell^Tabitha"
# (what, tag, VR, value)
INSERTED: tuple[tuple[str, int, bytes, bytes], ...] = (
    ("name as UN", 0x00100010, b"UN", b"Quennell^Tabitha"), ("name as LO", 0x00100010, b"LO", b"Quennell^Tabitha"),
    ("id as LT", 0x00100020, b"LT", b"MRN-7730418"), ("description as UN", 0x00081030, b"UN", b"CT chest Quennell"),
    ("SOP instance as UN", 0x00080018, b"UN", f"{ROOT}.0.1.1".encode()), ("DS with text", 0x00180050, b"DS", b"Ravensworth"),
    ("CS with text", 0x00180071, b"IS", b"Ravensworth"), ("DA with text", 0x00080022, b"DA", b"Quennell"), ("TM with text", 0x00080032, b"TM", b"Ravensworth"),
    ("UI with text", 0x00080058, b"UI", b"Ravensworth"), ("CS in capitals", 0x00185100, b"CS", b"RAVENSWORTH"), ("AE", 0x00080054, b"AE", b"RAVENSWORTH"),
    ("UR", 0x00081190, b"UR", b"http://pacs.ravensworth.org/wado?x=1"), ("UN with items", 0x00081115, b"UN", _NAMED), ("unknown UN with items", 0x00400FFE, b"UN", _NAMED),
    ("LUT", 0x00281201, b"OW", b"Ravensworth Ida".ljust(512, b"\0")), ("unknown tag", 0x00280FFC, b"LO", b"Ravensworth"), ("retired text", 0x40000010, b"LT", b"Ravensworth"),
    ("interpretation", 0x4008010B, b"ST", b"Dr Ravensworth says nodule"), ("study time as DT", 0x00080030, b"DT", b"20190315101500"),
    ("private without creator", 0x00111001, b"LO", b"Ravensworth"), ("creator", 0x00110010, b"LO", b"Ravensworth blocks"), ("signature", 0x0400FFFA, b"OB", b"Ravensworth"),
)  # fmt: skip


def _sop(uid: str, modality: str, number: int) -> FileDataset:
    ds = base(PEOPLE[0], number, sop_class=uid, modality=modality, pixels=False)
    return ds


def _image_reference() -> Dataset:
    return item(ReferencedSOPClassUID=CT, ReferencedSOPInstanceUID=IMAGE)


def report(number: int) -> tuple[FileDataset, list[Check]]:
    ds = _sop("1.2.840.10008.5.1.4.1.1.88.33", "SR", number)
    text = lambda concept, value: item(ValueType="TEXT", ConceptNameCodeSequence=concept, TextValue=value)  # noqa: E731
    ds.ContentSequence = sequence(
        item(
            ValueType="PNAME", ConceptNameCodeSequence=code("121008", "Person Observer Name"), PersonName=f"{PHI}^Ida"
        ),
        text(code("121071", "Finding"), "Quennell"),
        text(code("121030", "Subject ID"), "ZZ-88"),
        text(code("121071", "Finding"), "3 cm mass in segment VII, ZZ-88"),
        item(ValueType="DATE", ConceptNameCodeSequence=code("121031", "Subject Birth Date"), Date="19511203"),
        item(
            ValueType="NUM",
            ConceptNameCodeSequence=code("121033", "Subject Age"),
            MeasuredValueSequence=sequence(item(NumericValue="94")),
        ),
        item(ValueType="UIDREF", ConceptNameCodeSequence=code("121018", "Study"), UID=STUDY),
        item(ValueType="DATETIME", ConceptNameCodeSequence=code("111060", "Study Date"), DateTime="20190315101500"),
    )
    ds.VerifyingObserverSequence = sequence(
        item(
            VerifyingObserverName=f"{PHI}^Ida",
            VerifyingOrganization=f"{PHI} Hospital",
            VerificationDateTime="20190316000100",
        )
    )
    at = lambda i, k: ("ContentSequence", i, k)  # noqa: E731
    return ds, privacy(
        "SR by concept", gone(PHI), gone("ZZ-88"), gone("19511203"), new_uid(STUDY, *at(6, "UID")), shifted("MRN-7730418", "20190315101500", *at(7, "DateTime")),
        lacks("94", "ContentSequence", 5, "MeasuredValueSequence", 0, "NumericValue"),
    ) + retention(
        "SR by concept", present(*at(0, "PersonName")), present(*at(1, "TextValue")), present(*at(2, "TextValue")), keeps("3 cm mass in segment VII", *at(3, "TextValue")),
        equal("Finding", *at(1, "ConceptNameCodeSequence"), 0, "CodeMeaning"),
    )  # fmt: skip


def structures(number: int) -> tuple[FileDataset, list[Check]]:
    ds = _sop("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT", number)
    ds.StructureSetLabel, ds.StructureSetDescription = "QUENNELL", f"contoured by Dr {PHI}"
    names = ("GTV-1", "Lung_L", "BrainStem", "Parotid_R", "z_Ring 1cm", "Quennell_PTV")
    ds.StructureSetROISequence = sequence(
        *(item(ROINumber=i, ReferencedFrameOfReferenceUID=FRAME, ROIName=n) for i, n in enumerate(names, 1))
    )
    contour = item(ContourData=[1, 2, 3, 4, 5, 6], ContourImageSequence=sequence(_image_reference()))
    ds.ROIContourSequence = sequence(item(ReferencedROINumber=1, ContourSequence=sequence(contour)))
    ds.RTROIObservationsSequence = sequence(item(ROIInterpreter=f"{PHI}^Ida", RTROIInterpretedType="GTV"))
    ds.ReviewerName, ds.ApprovalStatus = f"{PHI}^Ida", "APPROVED"
    where = ("ROIContourSequence", 0, "ContourSequence", 0)
    return ds, privacy(
        "RT structure set", gone(PHI), new_uid(IMAGE, *where, "ContourImageSequence", 0, "ReferencedSOPInstanceUID"),
        new_uid(FRAME, "StructureSetROISequence", 0, "ReferencedFrameOfReferenceUID"),
    ) + retention(
        "RT structure set", *(equal(n, "StructureSetROISequence", i, "ROIName") for i, n in enumerate(names[:5])), equal([1, 2, 3, 4, 5, 6], *where, "ContourData"),
        keeps("PTV", "StructureSetROISequence", 5, "ROIName"), present("StructureSetLabel"), equal("APPROVED", "ApprovalStatus"),
    )  # fmt: skip


def plan(number: int) -> tuple[FileDataset, list[Check]]:
    ds = _sop("1.2.840.10008.5.1.4.1.1.481.5", "RTPLAN", number)
    ds.RTPlanLabel, ds.RTPlanDescription = "QUENNELL1", f"for Quennell by Dr {PHI}"
    control = item(ControlPointIndex=0, NominalBeamEnergy="6", GantryAngle="0")
    ds.BeamSequence = sequence(
        item(
            BeamName="AP Quennell",
            TreatmentMachineName="RAVENLINAC1",
            Manufacturer="Varian",
            InstitutionName=PHI,
            DeviceSerialNumber="H191234",
            ControlPointSequence=sequence(control),
        )
    )
    return ds, privacy("RT plan", *map(gone, (PHI, "RAVENLINAC1", "H191234"))) + retention(
        "RT plan", equal("6", "BeamSequence", 0, "ControlPointSequence", 0, "NominalBeamEnergy"), equal("Varian", "BeamSequence", 0, "Manufacturer"), present("RTPlanLabel"),
    )  # fmt: skip


def presentation(number: int) -> tuple[FileDataset, list[Check]]:
    ds = _sop("1.2.840.10008.5.1.4.1.1.11.1", "PR", number)
    ds.ContentLabel, ds.ContentDescription, ds.ContentCreatorName = "QUENNELL", "for Quennell", f"{PHI}^I"
    texts = sequence(item(UnformattedTextValue="Quennell"), item(UnformattedTextValue="nodule 8 mm"))
    line = item(GraphicType="POLYLINE", GraphicData=[1.0, 2.0, 3.0, 4.0])
    ds.GraphicAnnotationSequence = sequence(
        item(GraphicLayer="QUENNELL LAYER", TextObjectSequence=texts, GraphicObjectSequence=sequence(line))
    )
    ds.ReferencedSeriesSequence = sequence(
        item(SeriesInstanceUID=SERIES, ReferencedImageSequence=sequence(_image_reference()))
    )
    where = ("GraphicAnnotationSequence", 0)
    return ds, privacy(
        "presentation texts", gone(PHI), new_uid(SERIES, "ReferencedSeriesSequence", 0, "SeriesInstanceUID"),
        new_uid(IMAGE, "ReferencedSeriesSequence", 0, "ReferencedImageSequence", 0, "ReferencedSOPInstanceUID"),
    ) + retention(
        "presentation texts", equal([1.0, 2.0, 3.0, 4.0], *where, "GraphicObjectSequence", 0, "GraphicData"), present("ContentLabel"), present(*where, "GraphicLayer"),
        equal("nodule 8 mm", *where, "TextObjectSequence", 1, "UnformattedTextValue"), present(*where, "TextObjectSequence", 0, "UnformattedTextValue"),
    )  # fmt: skip


def electrocardiogram(number: int) -> tuple[FileDataset, list[Check]]:
    ds = _sop("1.2.840.10008.5.1.4.1.1.9.1.1", "ECG", number)
    group = item(
        MultiplexGroupLabel="RHYTHM Quennell",
        ChannelDefinitionSequence=sequence(item(ChannelLabel="Lead I")),
        WaveformBitsAllocated=16,
    )
    group.add_new(0x54001010, "OW", struct.pack("<4h", 1, 2, 3, 4))
    ds.WaveformSequence = sequence(group)
    ds.WaveformAnnotationSequence = sequence(item(UnformattedTextValue=f"Sinus rhythm, confirmed by Dr {PHI}"))
    return ds, privacy("waveforms", gone(PHI)) + retention(
        "waveforms", equal(struct.pack("<4h", 1, 2, 3, 4), "WaveformSequence", 0, 0x54001010), equal("Lead I", "WaveformSequence", 0, "ChannelDefinitionSequence", 0, "ChannelLabel"),
        keeps("Sinus rhythm", "WaveformAnnotationSequence", 0, "UnformattedTextValue"),
    )  # fmt: skip


def segmentation(number: int) -> tuple[FileDataset, list[Check]]:
    ds = base(PEOPLE[0], number, sop_class="1.2.840.10008.5.1.4.1.1.66.4", modality="SEG")
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, 1, 0
    ds.PixelData = np.packbits(np.random.default_rng(1).integers(0, 2, 64 * 64, dtype=np.uint8)).tobytes()
    ds.SegmentSequence = sequence(
        item(
            SegmentNumber=1,
            SegmentLabel="Liver",
            SegmentDescription="Liver of Quennell",
            TrackingID="Quennell-1",
            TrackingUID=f"{ROOT}.0.44",
        )
    )
    pixels = bytes(ds.PixelData)
    return ds, privacy("segmentation", new_uid(f"{ROOT}.0.44", "SegmentSequence", 0, "TrackingUID")) + retention(
        "segmentation",
        equal("Liver", "SegmentSequence", 0, "SegmentLabel"),
        lambda seen: bytes(seen.ds.PixelData) == pixels,
    )


def document(number: int) -> tuple[FileDataset, list[Check]]:
    ds = _sop("1.2.840.10008.5.1.4.1.1.104.1", "DOC", number)
    ds.MIMETypeOfEncapsulatedDocument, ds.DocumentTitle = "application/pdf", "Chest report Quennell"
    ds.EncapsulatedDocument = b"%PDF-1.4 Ravensworth, Quennell "
    return ds, privacy("documents", gone(PHI)) + retention(
        "documents", keeps("Chest report", "DocumentTitle"), _starts(b"%PDF-")
    )


def clinical_document(number: int) -> tuple[FileDataset, list[Check]]:
    ds = _sop("1.2.840.10008.5.1.4.1.1.104.2", "DOC", number)
    ds.MIMETypeOfEncapsulatedDocument = "text/XML"
    ds.EncapsulatedDocument = b"<?xml version='1.0'?><ClinicalDocument><name>Ravensworth</name></ClinicalDocument>"
    return ds, privacy("documents", gone(PHI)) + retention("documents", _starts(b"<?xml"))


def _starts(magic: bytes) -> Callable[..., bool]:
    return lambda seen: bytes(seen.ds.EncapsulatedDocument).startswith(magic)


def private(number: int) -> tuple[FileDataset, list[Check]]:
    ds = base(PEOPLE[0], number)
    ds.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
    ds.add_new(0x0019100C, "IS", "1000")
    ds.add_new(0x0019100E, "FD", [0.1, 0.2, 0.3])
    ds.add_new(0x00290010, "LO", "SIEMENS CSA HEADER")
    ds.add_new(0x00291010, "OB", b"SV10\4\3\2\1" + b"Ravensworth".ljust(200, b"\0"))
    ds.add_new(0x00430010, "LO", "GEMS_PARM_01")
    ds.add_new(0x00431039, "IS", [1000, 0, 0, 0])
    ds.add_new(0x20050010, "LO", "Philips MR Imaging DD 001")
    ds.add_new(0x2005100E, "FL", 0.5)
    ds.add_new(0x70530010, "LO", "Philips PET Private Group")
    ds.add_new(0x70531000, "DS", "1.234")
    ds.add_new(0x00090010, "LO", "GEMS_PETD_01")
    ds.add_new(0x0009100D, "DT", "20190315081500.00")
    return ds, privacy("safe private of vendors", gone(PHI), gone("20190315")) + retention(
        "safe private of vendors", equal("1000", 0x0019100C), equal([0.1, 0.2, 0.3], 0x0019100E), equal([1000, 0, 0, 0], 0x00431039), equal(0.5, 0x2005100E), equal("1.234", 0x70531000),
    )  # fmt: skip


OBJECTS = (
    report,
    structures,
    plan,
    presentation,
    electrocardiogram,
    segmentation,
    document,
    clinical_document,
    private,
)


def cases(start: int) -> Iterator[Case]:
    """One file for each odd element, and one for each kind of object."""
    numbers = count(start + 1)
    everywhere = privacy("odd elements", *map(gone, (PHI, "Quennell", "Tabitha", "7730418", "Kesselring")))
    for what, tag, vr, value in INSERTED:
        raw = insert(encoded(base(PEOPLE[0], next(numbers))), tag, vr, value)
        kept = retention("odd elements", equal("ACME Imaging", "Manufacturer"))
        yield Case(f"odd: {what}", raw, [*everywhere, *kept])
    for make in OBJECTS:
        ds, checks = make(next(numbers))
        yield Case(make.__name__, encoded(ds), [*everywhere, *checks])
