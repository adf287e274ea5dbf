"""The demo's report: self-contained, true to its figures, readable in light and dark."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from rich.console import Console

from aggregator_client.demo import cohort, headers, images, report, results, wrap
from dicom_node.comparison import compare

NAMES = ["Lindenau", "St Brendan", "Aozora"]


def make_result(fedavg: float = 0.771, note: str = "no Orthanc <here>") -> results.DemoResult:
    sites = [
        results.SiteResult(
            name=name,
            institution="Clinic",
            scanner="Maker Model, DX",
            received=219,
            deidentified=218,
            used=200,
            bytes_in=4_000_000,
            mix={"train": {"normal": 98, "bacterial": 10, "viral": 22}},
            egress=[
                results.Egress("12:00:01", "update", n, "coordinator", 1000 + n, "ab" * 32, "sealed") for n in (1, 2)
            ],
            audit=results.AuditVerdict(
                ok=name != "Aozora", records=40, reason="" if name != "Aozora" else "at record 7"
            ),
        )
        for name in NAMES
    ]
    one = results.AlgorithmResult
    per_site = dict(zip(NAMES, (0.61, 0.62, 0.63), strict=True))
    return results.DemoResult(
        sites=sites,
        algorithms={
            "local": one(0.672, per_site, 0, 0, 20.0),
            "fedavg": one(fedavg, per_site, 6009, 2, 100.0),
            "cds": one(0.789, per_site, 12_000_000, 0, 40.0),
        },
        curve=[results.RoundPoint(n, per_site, 0.5 + n / 10) for n in range(3)],
        held_out_patients=180,
        notes=[note],
        seconds=200.0,
        project={"digest": "cd" * 32},
    )


class Links(HTMLParser):
    """Collects what a page would load, and the texts of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        self.loads += [facts[key] or "" for key in ("src", "data") if key in facts]
        if tag in ("link", "script", "iframe"):
            self.loads.append(f"<{tag}>")
        if (tag == "img" and not facts.get("alt")) or (tag == "svg" and not facts.get("aria-label")):
            self.silent.append(tag)


def example(tmp_path: Path) -> headers.BeforeAfter:
    data = wrap.instances(cohort.deal(images.load_pack(), 2)[0][0])[0]
    data.save_as(tmp_path / "before.dcm", enforce_file_format=True)
    data.PatientName, data.AccessionNumber = "PSEUDONYM", ""
    del data.PatientAddress
    data.PatientIdentityRemoved = "YES"
    data.save_as(tmp_path / "after.dcm", enforce_file_format=True)
    found = headers.before_after(tmp_path / "before.dcm", [tmp_path / "after.dcm"])
    assert found is not None
    return found


def test_the_page_loads_nothing_and_every_picture_has_words(tmp_path: Path) -> None:
    page = report.write_report(tmp_path / "report.html", make_result(), example(tmp_path)).read_text(encoding="utf-8")
    links = Links()
    links.feed(page)
    assert links.silent == []
    assert links.loads and all(one.startswith("data:image/png;base64,") for one in links.loads)
    assert not re.search(r"url\(|@import", page)
    assert "invented for this demo" in page and "CC BY 4.0" in page


def test_the_page_says_the_figures_it_was_given(tmp_path: Path) -> None:
    page = report.write_report(tmp_path / "report.html", make_result(), None).read_text(encoding="utf-8")
    for words in ("0.672", "0.771", "0.789", "audit chain whole", "audit chain broken", "at record 7", "cdcdcdcd"):
        assert words in page
    assert "no Orthanc &lt;here&gt;" in page
    assert "before and after the wall" not in page


@pytest.mark.parametrize(
    ("fedavg", "words"),
    [(0.771, ("0.099 above", "0.018 below")), (0.6, ("0.072 below",)), (0.8, ("0.128 above", "0.011 above"))],
)
def test_the_verdict_follows_the_figures(fedavg: float, words: tuple[str, ...]) -> None:
    verdict = make_result(fedavg).verdict()
    assert all(word in verdict for word in words), verdict


def test_the_contract_has_its_stable_keys() -> None:
    found = make_result().contract("demo/report.html")
    assert set(found) == {"sites", "algorithms", "report"}
    assert found["sites"][0] == {
        "name": "Lindenau",
        "received": 219,
        "deidentified": 218,
        "used": 200,
        "bytes_out": 2003,
    }
    assert set(found["algorithms"]) == {"local", "fedavg", "cds"}
    assert set(found["algorithms"]["fedavg"]) == {"auc", "per_site", "bytes", "rounds", "seconds"}
    assert set(found["algorithms"]["fedavg"]["per_site"]) == set(NAMES)


def test_the_table_names_every_hospital() -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(make_result().table())
    text = console.export_text()
    assert all(name in text for name in NAMES) and "0.771" in text


def test_the_header_diff_tells_each_kind_of_change(tmp_path: Path) -> None:
    found = example(tmp_path)
    kinds = {row.path: row.change for row in found.rows}
    assert kinds["PatientName"] == "changed"
    assert kinds["PatientAddress"] == "removed"
    assert kinds["AccessionNumber"] == "emptied"
    assert kinds["PatientIdentityRemoved"] == "added"
    assert kinds["Rows"] == "kept"
    assert "OtherPatientIDsSequence › PatientID" in kinds
    assert found.picture_before == found.picture_after


def test_every_item_of_a_sequence_is_a_row_of_its_own() -> None:
    codes = [Dataset(), Dataset()]
    for code, value in zip(codes, ("113100", "113107"), strict=True):
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", f"Option {value}"
    del codes[1].CodeMeaning
    data = Dataset()
    data.DeidentificationMethodCodeSequence = codes
    paths = {row.path: row.after for row in compare(Dataset(), data)}
    assert paths == {
        "DeidentificationMethodCodeSequence 1": "Option 113100 (113100, DCM)",
        "DeidentificationMethodCodeSequence 2 › CodeValue": "113107",
        "DeidentificationMethodCodeSequence 2 › CodingSchemeDesignator": "DCM",
    }


def contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_meet_wcag_aa_in_light_and_dark() -> None:
    template = (Path(report.__file__).parent / "templates" / "report.html.j2").read_text(encoding="utf-8")
    schemes = [
        dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", template, re.S)
    ]
    assert len(schemes) == 2
    for colours in schemes:
        for ground in ("page", "card"):
            for text in ("text", "soft"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        assert contrast(colours["fedavg"], colours["card"]) >= 4.5
        assert contrast(colours["good"], colours["goodbg"]) >= 4.5
        assert contrast(colours["bad"], colours["badbg"]) >= 4.5
        assert contrast(colours["text"], colours["mark"]) >= 4.5
        for drawn in ("local", "cds", "site0", "site1", "site2", "site3", "site4"):
            assert contrast(colours[drawn], colours["card"]) >= 3, drawn
        for part in images.FINDINGS:
            assert contrast(colours["inside"], colours[part]) >= 4.5, part
