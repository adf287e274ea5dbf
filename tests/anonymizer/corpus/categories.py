"""Where identifying content hides, one function a place; each says what must be gone and what must have stayed."""

# ruff: noqa: E501 - a category reads better with its content on one line
from __future__ import annotations

from pydicom.dataelem import DataElement
from pydicom.dataset import FileDataset

from tests.anonymizer.corpus.generate import ROOT, Category, item, privacy, retention, sequence
from tests.anonymizer.corpus.key import Check, equal, gone, keeps, lacks, new_uid, removed, shifted
from tests.anonymizer.corpus.people import PEOPLE, Person

CATEGORIES: list[Category] = []


def category(function: Category) -> Category:
    CATEGORIES.append(function)
    return function


@category
def name_in_description(ds: FileDataset, p: Person) -> list[Check]:
    ds.SeriesDescription = f"Axial 1.5 mm lung {p.pieces[0]} FINAL"
    return privacy("name in description", gone(p.pieces[0])) + retention(
        "name in description", keeps("FINAL", "SeriesDescription")
    )


@category
def name_upper_underscore(ds: FileDataset, p: Person) -> list[Check]:
    ds.ProtocolName = f"HEAD_{p.pieces[0].upper()}_ROUTINE"
    return privacy("name upper underscore", gone(p.pieces[0])) + retention(
        "name upper underscore", keeps("HEAD ROUTINE", "ProtocolName")
    )


@category
def name_order(ds: FileDataset, p: Person) -> list[Check]:
    ds.ImageComments = f"Follow-up of {p.pieces[1]} {p.pieces[0]}, stable nodule"
    return privacy("name order", gone(p.pieces[0]), gone(p.pieces[1])) + retention(
        "name order", keeps("Follow-up stable nodule", "ImageComments")
    )


@category
def dates_in_text(ds: FileDataset, p: Person) -> list[Check]:
    ds.ImageComments = f"compared with {p.study[:4]}-{p.study[4:6]}-{p.study[6:]} and 15 March 2019, no change"
    return privacy("date in text", gone("2019-03-15"), gone("15 March 2019")) + retention(
        "date in text", keeps("compared with no change", "ImageComments")
    )


@category
def birth_in_text(ds: FileDataset, p: Person) -> list[Check]:
    b = p.birth
    ds.AdditionalPatientHistory = f"DOB: {b[6:]}/{b[4:6]}/{b[:4]} smoker, hypertension"
    return privacy("birth in text", gone(f"{b[6:]}/{b[4:6]}/{b[:4]}")) + retention(
        "birth in text", keeps("smoker hypertension", "AdditionalPatientHistory")
    )


@category
def id_in_text(ds: FileDataset, p: Person) -> list[Check]:
    ds.StudyDescription = f"CT chest with contrast {p.pid}/{p.accession}"
    return privacy("id in text", gone(p.pid), gone(p.accession))


@category
def cued_ids(ds: FileDataset, p: Person) -> list[Check]:
    ds.PatientComments = "MRN: 0048213, SSN 123-45-6789, Acc# AX-2291, allergic to iodine"
    return privacy("cued ids", gone("0048213"), gone("123-45-6789"), gone("AX-2291")) + retention(
        "cued ids", keeps("allergic to iodine", "PatientComments")
    )


@category
def contacts(ds: FileDataset, p: Person) -> list[Check]:
    ds.ImageComments = "Call (555) 867-5309 or jdoe@stbrannoc.example.org, fax +44 20 7946 0958; motion artifact"
    return privacy("contacts", gone("867-5309"), gone("jdoe@stbrannoc"), gone("7946 0958")) + retention(
        "contacts", keeps("motion artifact", "ImageComments")
    )


@category
def address_in_text(ds: FileDataset, p: Person) -> list[Check]:
    ds.ImageComments = "lives at 4412 Sycamore Hollow Road, Springfield, IL 62704. Chronic cough"
    return privacy("address", gone("Sycamore"), gone("62704")) + retention(
        "address", keeps("Chronic cough", "ImageComments")
    )


@category
def titled_people(ds: FileDataset, p: Person) -> list[Check]:
    ds.ImageComments = (
        "Discussed with Dr. Wetherby-Pryce and Prof Anantharaman; read by M. Castellanos MD. Pleural effusion"
    )
    return privacy("titled people", gone("Wetherby"), gone("Anantharaman"), gone("Castellanos")) + retention(
        "titled people", keeps("Pleural effusion", "ImageComments")
    )


@category
def listed_names(ds: FileDataset, p: Person) -> list[Check]:
    ds.ImageComments = "Technologist: Brenda Kowalczyk. Patient accompanied by Maria Gonzalez. Left breast mass"
    return privacy("listed names", gone("Kowalczyk"), gone("Gonzalez")) + retention(
        "listed names", keeps("Left breast mass", "ImageComments")
    )


@category
def institutions_in_text(ds: FileDataset, p: Person) -> list[Check]:
    ds.StudyDescription = "CT chest with contrast from Pemberwick Valley Hospital outside study"
    return privacy("institution in text", gone("Pemberwick")) + retention(
        "institution in text", keeps("outside study", "StudyDescription")
    )


@category
def eponyms(ds: FileDataset, p: Person) -> list[Check]:
    text = "Hodgkin lymphoma, Parkinson disease, Crohn's, Swan-Ganz catheter, Baker cyst, Wilson's disease, Kerley B lines, Dixon fat sat"
    ds.ImageComments = text
    return retention(
        "eponyms",
        *(
            keeps(w, "ImageComments")
            for w in ["Hodgkin", "Parkinson", "Crohn", "Swan-Ganz", "Baker", "Wilson", "Kerley", "Dixon"]
        ),
    )


CLINICAL = (
    "T1 MPRAGE SAG 1mm iso", "AX T2 FLAIR FS", "CT ABDOMEN PELVIS W/WO CONTRAST", "PA and lateral chest", "3D TOF MRA circle of Willis",
    "RT breast tomosynthesis MLO", "Thorax 5.0 B31f", "ep2d_diff_3scan_trace_p2_ADC", "LEFT KNEE 2 VIEWS", "Whole body PET/CT FDG 60 min p.i.",
    "Lung window 1.25mm recon 2", "Head^Routine (Adult)", "Abd^3_PHASE_LIVER", "t2_tse_tra_320_p2", "dynamic VIBE post gad 20 ml", "Screening mammogram, BI-RADS 2",
    "Long axis cine 4 chamber", "grey white matter differentiation preserved", "may represent early infiltrate", "C3-C4 disc herniation, L5/S1 stenosis",
    "kVp 120, mAs 250, CTDIvol 12.5 mGy", "nodule 8 x 6 mm in RUL, SUVmax 4.2", "s/p CABG 2 vessels, stent LAD", "58 year old woman with dyspnea",
)  # fmt: skip


@category
def clinical_text(ds: FileDataset, p: Person) -> list[Check]:
    ds.ImageComments = "; ".join(CLINICAL)[:10000]
    return retention("clinical text", *(keeps(t, "ImageComments") for t in CLINICAL))


@category
def clinical_descriptions(ds: FileDataset, p: Person) -> list[Check]:
    ds.RequestAttributesSequence = sequence(*(item(ScheduledProcedureStepDescription=t[:64]) for t in CLINICAL))
    return retention(
        "descriptions",
        *(
            equal(t[:64], "RequestAttributesSequence", i, "ScheduledProcedureStepDescription")
            for i, t in enumerate(CLINICAL)
        ),
    )


@category
def deep_nesting(ds: FileDataset, p: Person) -> list[Check]:
    inner = item(
        PatientName=p.name,
        StudyDate=p.study,
        ReferencedSOPInstanceUID=f"{ROOT}.5.5",
        PatientComments=f"{p.pieces[0]} fell",
    )
    path: list[object] = []
    for _ in range(12):
        inner = item(ReferencedSeriesSequence=sequence(inner))
        path += ["ReferencedSeriesSequence", 0]
    ds.update(inner)
    ds.ReferencedSeriesSequence = inner.ReferencedSeriesSequence
    return privacy(
        "deep nesting",
        gone(p.pieces[0]),
        new_uid(f"{ROOT}.5.5", *path, "ReferencedSOPInstanceUID"),
        shifted(p.pid, p.study, *path, "StudyDate"),
    )


@category
def private_unknown(ds: FileDataset, p: Person) -> list[Check]:
    block = ds.private_block(0x0043, f"VENDOR {p.pieces[0][:8]}", create=True)
    block.add_new(0x01, "LO", "Kept by nobody Ravensworth")
    block.add_new(0x02, "UN", "Ravensworth".encode("utf-16-le"))
    return privacy("private unknown", gone("Ravensworth"), gone(p.pieces[0]))


@category
def private_safe_moved(ds: FileDataset, p: Person) -> list[Check]:
    ds.add_new(0x00190042, "LO", "SIEMENS MR HEADER")
    ds.add_new(0x0019420C, "IS", "1000")
    ds.add_new(0x00194299, "LO", "Ravensworth")
    return privacy("private safe", gone("Ravensworth")) + retention("private safe", equal("1000", 0x0019420C))


@category
def private_safe_text(ds: FileDataset, p: Person) -> list[Check]:
    ds.add_new(0x20010010, "LO", "Philips Imaging DD 001")
    ds.add_new(0x200110C1, "LO", f"{p.pieces[0]} stack")
    ds.add_new(0x20011003, "FL", 1000.0)
    return privacy("private safe text", gone(p.pieces[0])) + retention("private safe text", equal(1000.0, 0x20011003))


@category
def private_sequence(ds: FileDataset, p: Person) -> list[Check]:
    block = ds.private_block(0x0031, "UNHEARD OF 1.0", create=True)
    block.add_new(0x05, "SQ", sequence(item(PatientName=p.name, OtherPatientNames="Ravensworth^Ida")))
    return privacy("private sequence", gone("Ravensworth"))


@category
def people_everywhere(ds: FileDataset, p: Person) -> list[Check]:
    ds.OperatorsName, ds.PerformingPhysicianName = "Ravensworth^Ida", ["Thistlewood^Ned", "Umberleigh^Olga"]
    ds.NameOfPhysiciansReadingStudy, ds.PatientMotherBirthName, ds.ResponsiblePerson = (
        "Vexford^Al",
        "Wintergreen^Mo",
        "Yarborough^Si",
    )
    ds.add_new(0x00700084, "PN", "Xanthopoulos^Zed")
    return privacy(
        "people",
        *(
            gone(w)
            for w in (
                "Ravensworth",
                "Thistlewood",
                "Umberleigh",
                "Vexford",
                "Wintergreen",
                "Yarborough",
                "Xanthopoulos",
            )
        ),
    )


@category
def identifiers_everywhere(ds: FileDataset, p: Person) -> list[Check]:
    ds.OtherPatientIDsSequence = sequence(
        item(PatientID="OPI-551209", IssuerOfPatientID="Ravensworth Trust", TypeOfPatientID="TEXT")
    )
    ds.DeviceSerialNumber, ds.StationName, ds.AdmissionID = "SN-8812331", "RAVENSCT1", "ADM-551276"
    ds.PatientAddress, ds.PatientTelephoneNumbers = "9 Ravensworth Lane", "555-0100-22"
    ds.MilitaryRank, ds.Occupation, ds.InsurancePlanIdentification = "Maj", "Lighthouse keeper", "PLAN-88123"
    return privacy(
        "identifiers",
        *(
            gone(w)
            for w in ("OPI-551209", "Ravensworth", "8812331", "RAVENSCT1", "ADM-551276", "PLAN-88123", "555-0100")
        ),
    )


@category
def unlisted_text(ds: FileDataset, p: Person) -> list[Check]:
    ds.add_new(0x00082111, "ST", f"lossy {p.pieces[0]} derived")  # Derivation Description
    ds.add_new(0x00189004, "CS", "RESEARCH")
    ds.add_new(0x00280A02, "CS", "FIDUCIAL")
    ds.add_new(0x00189005, "SH", "epi_fid")
    return privacy("unlisted", gone(p.pieces[0])) + retention(
        "unlisted", equal("RESEARCH", 0x00189004), equal("epi_fid", 0x00189005)
    )


@category
def unknown_standard(ds: FileDataset, p: Person) -> list[Check]:
    ds.add_new(0x00080FFE, "LO", "Ravensworth")
    ds.add_new(0x00221FFE, "UN", b"Ravensworth Ida ")
    return privacy("unknown attributes", gone("Ravensworth"))


@category
def wrong_vr(ds: FileDataset, p: Person) -> list[Check]:
    ds[0x00081048] = DataElement(0x00081048, "UN", b"Ravensworth^Ida ")
    ds[0x00181151] = DataElement(0x00181151, "LO", "Ravensworth")  # X-Ray Tube Current is IS
    ds[0x00080022] = DataElement(0x00080022, "LO", p.study)
    ds[0x00280002] = DataElement(0x00280002, "US", 1)
    return privacy("wrong VR", gone("Ravensworth"), shifted(p.pid, p.study, "AcquisitionDate"))


@category
def times(ds: FileDataset, p: Person) -> list[Check]:
    ds.AcquisitionDateTime, ds.AcquisitionDate, ds.AcquisitionTime = (
        "20190316001502.250000+0100",
        "20190316",
        "001502.25",
    )
    ds.RadiopharmaceuticalInformationSequence = sequence(
        item(
            RadiopharmaceuticalStartTime="231502",
            RadiopharmaceuticalStartDateTime="20190315231502",
            RadionuclideTotalDose="3.7e8",
            RadionuclideHalfLife="6586.2",
        )
    )
    path = ("RadiopharmaceuticalInformationSequence", 0)
    return privacy(
        "date times", shifted(p.pid, "20190316001502.250000+0100", "AcquisitionDateTime"), shifted(p.pid, "20190316", "AcquisitionDate"),
        shifted(p.pid, "20190315231502", *path, "RadiopharmaceuticalStartDateTime"),
    ) + retention("date times", equal("001502.25", "AcquisitionTime"), equal("231502", *path, "RadiopharmaceuticalStartTime"), equal("3.7e8", *path, "RadionuclideTotalDose"))  # fmt: skip


@category
def references(ds: FileDataset, p: Person) -> list[Check]:
    i = PEOPLE.index(p)
    ds.ReferencedImageSequence = sequence(
        item(ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2", ReferencedSOPInstanceUID=f"{ROOT}.{i}.1.77")
    )
    ds.SourceImageSequence = sequence(
        item(
            ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.2", ReferencedSOPInstanceUID=f"{ROOT}.{i}.1.77\0".strip("\0")
        )
    )
    where = ("ReferencedImageSequence", 0), ("SourceImageSequence", 0)
    return privacy(
        "references",
        *(new_uid(f"{ROOT}.{i}.1.77", *w, "ReferencedSOPInstanceUID") for w in where),
        gone(f"{ROOT}.{i}.1.77"),
    ) + retention("references", *(equal("1.2.840.10008.5.1.4.1.1.2", *w, "ReferencedSOPClassUID") for w in where))


@category
def uid_in_text(ds: FileDataset, p: Person) -> list[Check]:
    ds.ImageComments = f"derived from {ROOT}.4.4.4 by averaging"
    return privacy("uid in text", gone(f"{ROOT}.4.4.4")) + retention(
        "uid in text", keeps("derived averaging", "ImageComments")
    )


@category
def overlays_and_curves(ds: FileDataset, p: Person) -> list[Check]:
    ds.add_new(0x60000010, "US", 16)
    ds.add_new(0x60000011, "US", 16)
    ds.add_new(0x60000022, "LO", f"Overlay {p.pieces[0]}")
    ds.add_new(0x60003000, "OW", b"Ravensworth Ida".ljust(32))
    ds.add_new(0x60004000, "LT", "Ravensworth")
    ds.add_new(0x50003000, "OW", b"Ravensworth ")
    return privacy("overlays", gone("Ravensworth"))


@category
def overlay_bits(ds: FileDataset, p: Person) -> list[Check]:
    import numpy as np

    cells = np.frombuffer(ds.PixelData, "<u2").copy()
    plain = cells.copy()
    cells[::3] |= 0x8000
    ds.PixelData = cells.tobytes()
    ds.add_new(0x60000010, "US", 16)
    ds.add_new(0x60000100, "US", 16)
    ds.add_new(0x60000102, "US", 15)
    bits = lambda seen: not (np.frombuffer(seen.ds.PixelData, "<u2") & 0xF000).any()  # noqa: E731
    kept = lambda seen: (np.frombuffer(seen.ds.PixelData, "<u2") & 0x0FFF == plain).all()  # noqa: E731
    return privacy("overlay bits", bits) + retention("overlay bits", kept)


@category
def excess_pixels(ds: FileDataset, p: Person) -> list[Check]:
    plain = ds.PixelData
    ds.PixelData = plain + b"Ravensworth Ida "
    return privacy("excess pixel bytes", gone("Ravensworth")) + retention(
        "excess pixel bytes", lambda s: bytes(s.ds.PixelData) == plain
    )


@category
def after_pixels(ds: FileDataset, p: Person) -> list[Check]:
    ds.add_new(0x7FE10010, "LO", "HIDDEN")
    ds.add_new(0x7FE11010, "OB", b"Ravensworth ")
    ds.add_new(0xFFFCFFFC, "OB", b"Ravensworth ")
    return privacy("after the pixels", gone("Ravensworth"))


@category
def icon(ds: FileDataset, p: Person) -> list[Check]:
    ds.IconImageSequence = sequence(item(Rows=4, Columns=4, BitsAllocated=8, PixelData=b"Ravensworth Ida!"))
    return privacy("icon", gone("Ravensworth"))


@category
def icc_profile(ds: FileDataset, p: Person) -> list[Check]:
    ds.add_new(
        0x00282000, "OB", b"\0" * 128 + b"desc\0\0\0\0\0\0\0\x0bMonitor of " + p.pieces[0].encode("utf-8") + b"\0" * 5
    )
    return privacy("ICC profile", gone(p.pieces[0]))


@category
def structured_report(ds: FileDataset, p: Person) -> list[Check]:
    code = sequence(item(CodeValue="121071", CodingSchemeDesignator="DCM", CodeMeaning="Finding"))
    ds.ContentSequence = sequence(
        item(ValueType="TEXT", ConceptNameCodeSequence=code, TextValue=f"{p.pieces[0]} has a 3 cm mass in segment VII"),
        item(ValueType="PNAME", ConceptNameCodeSequence=code, PersonName="Ravensworth^Ida"),
        item(ValueType="DATE", ConceptNameCodeSequence=code, Date=p.study),
        item(ValueType="UIDREF", ConceptNameCodeSequence=code, UID=f"{ROOT}.6.6"),
        item(
            ValueType="CONTAINER",
            ContentSequence=sequence(item(ValueType="TEXT", TextValue="Reported by Dr Umberleigh on 2019-03-15")),
        ),
    )
    return privacy(
        "structured report", gone("Ravensworth"), gone("Umberleigh"), gone("2019-03-15"), shifted(p.pid, p.study, "ContentSequence", 2, "Date"),
        new_uid(f"{ROOT}.6.6", "ContentSequence", 3, "UID"),
    ) + retention(
        "structured report", keeps("3 cm mass in segment VII", "ContentSequence", 0, "TextValue"), equal("121071", "ContentSequence", 0, "ConceptNameCodeSequence", 0, "CodeValue"),
        equal("Finding", "ContentSequence", 0, "ConceptNameCodeSequence", 0, "CodeMeaning"),
    )  # fmt: skip


@category
def presentation_state(ds: FileDataset, p: Person) -> list[Check]:
    ds.GraphicAnnotationSequence = sequence(
        item(TextObjectSequence=sequence(item(UnformattedTextValue=f"lesion {p.pieces[0]} 12 mm")))
    )
    ds.ContentLabel, ds.ContentCreatorName = "MEASURE", "Ravensworth^Ida"
    where = ("GraphicAnnotationSequence", 0, "TextObjectSequence", 0, "UnformattedTextValue")
    return privacy("presentation state", gone("Ravensworth"), gone(p.pieces[0])) + retention(
        "presentation state", keeps("lesion 12 mm", *where)
    )


@category
def rt_and_seg(ds: FileDataset, p: Person) -> list[Check]:
    ds.StructureSetROISequence = sequence(
        item(ROINumber=1, ROIName="Heart", ReferencedFrameOfReferenceUID=f"{ROOT}.{PEOPLE.index(p)}.7"),
        item(ROINumber=2, ROIName=f"PTV {p.pieces[0]}"),
    )
    ds.SegmentSequence = sequence(
        item(SegmentNumber=1, SegmentLabel="Liver", SegmentDescription=f"drawn by Dr Ravensworth for {p.pieces[0]}")
    )
    ds.StructureSetLabel = f"{p.pieces[0]} plan 1"
    return privacy(
        "RT and SEG",
        gone("Ravensworth"),
        gone(p.pieces[0]),
        new_uid(f"{ROOT}.{PEOPLE.index(p)}.7", "StructureSetROISequence", 0, "ReferencedFrameOfReferenceUID"),
    ) + retention(
        "RT and SEG",
        equal("Heart", "StructureSetROISequence", 0, "ROIName"),
        equal("Liver", "SegmentSequence", 0, "SegmentLabel"),
        keeps("PTV", "StructureSetROISequence", 1, "ROIName"),
    )


@category
def waveform(ds: FileDataset, p: Person) -> list[Check]:
    ds.WaveformAnnotationSequence = sequence(
        item(UnformattedTextValue=f"sinus rhythm {p.pieces[0]}", AnnotationGroupNumber=1)
    )
    return privacy("waveform", gone(p.pieces[0])) + retention(
        "waveform", keeps("sinus rhythm", "WaveformAnnotationSequence", 0, "UnformattedTextValue")
    )


@category
def numbers_and_codes(ds: FileDataset, p: Person) -> list[Check]:
    ds.SliceThickness, ds.KVP, ds.PixelSpacing, ds.ImagePositionPatient = (
        "1.5",
        "120",
        ["0.7", "0.7"],
        ["-100", "-120.5", "33.25"],
    )
    ds.RescaleIntercept, ds.RescaleSlope, ds.WindowCenter, ds.WindowWidth = (
        "-1024",
        "1",
        ["40", "-600"],
        ["400", "1500"],
    )
    ds.ConvolutionKernel, ds.SoftwareVersions, ds.PatientPosition, ds.ProtocolName = (
        "B31f",
        ["syngo CT 2012B", "VA48A"],
        "HFS",
        "5.1 ThoraxRoutine (Adult)",
    )
    ds.PatientWeight, ds.PatientSize = "71.5", "1.78"
    keep = {
        "SliceThickness": "1.5",
        "KVP": "120",
        "ConvolutionKernel": "B31f",
        "PatientPosition": "HFS",
        "RescaleIntercept": "-1024",
        "PatientWeight": "71.5",
        "PatientSize": "1.78",
    }
    return retention(
        "numbers and codes",
        *(equal(v, k) for k, v in keep.items()),
        equal(["syngo CT 2012B", "VA48A"], "SoftwareVersions"),
        keeps("ThoraxRoutine (Adult)", "ProtocolName"),
    )


@category
def ambiguous_words(ds: FileDataset, p: Person) -> list[Check]:
    ds.ImageComments = (
        "white matter, long axis, may be young adult, rose bengal, brown fat, hall technique, grace period"
    )
    return retention(
        "ambiguous words",
        *(keeps(w, "ImageComments") for w in ("white matter", "long axis", "brown fat", "young adult")),
    )


@category
def removed_attributes(ds: FileDataset, p: Person) -> list[Check]:
    ds.PatientBirthTime, ds.OtherPatientNames, ds.RequestingPhysician = "101500", "Ravensworth^Ida", "Umberleigh^Olga"
    ds.CurrentPatientLocation, ds.PatientReligiousPreference = "Ward Ravensworth", "Quaker"
    return privacy(
        "removed",
        gone("Ravensworth"),
        gone("Umberleigh"),
        gone("Quaker"),
        removed("PatientBirthTime"),
        lacks("Ward Raven", "CurrentPatientLocation"),
    )
