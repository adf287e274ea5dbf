"""A demo hospital's settings, and its figures read from the node's own books."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregator_client.demo import pacs
from aggregator_client.demo.hospital import _egress, set_values
from aggregator_client.demo.processes import Children, DemoError, free_ports
from dicom_node.config import load_config
from dicom_node.setup import write_default_config


def test_settings_change_values_and_keep_comments(tmp_path: Path) -> None:
    file = write_default_config(tmp_path, ae_title="LINDENAU", port=11113)
    comments = file.read_text(encoding="utf-8").count("#")
    set_values(file, {"study.quiet_seconds": 2, "dicom.allowed_ae_titles": ["MODALITY"], "orthanc.password_file": "p"})
    config = load_config(file)
    assert config.study.quiet_seconds == 2
    assert config.dicom.allowed_ae_titles == ("MODALITY",)
    assert config.orthanc.password_file == tmp_path / "p"
    assert config.dicom.ae_title == "LINDENAU"
    assert comments - 6 < file.read_text(encoding="utf-8").count("#") < comments


def test_a_key_that_node_toml_lacks_is_refused(tmp_path: Path) -> None:
    file = write_default_config(tmp_path)
    with pytest.raises(DemoError, match=r"no key study\.port"):
        set_values(file, {"study.port": 1})


def test_an_egress_record_becomes_a_line_of_the_report() -> None:
    facts = {
        "round": 3,
        "recipient": "coordinator",
        "what": "update",
        "bytes": 12,
        "sha256": "ab",
        "privacy": {"mode": "sealed"},
    }
    line = _egress(1_700_000_000.0, facts)
    assert (line.at, line.round, line.bytes, line.privacy) == ("22:13:20", 3, 12, "mode sealed")


@pytest.mark.interop
@pytest.mark.skipif(bool(pacs.missing()), reason=pacs.missing() or "there")
def test_the_hospitals_orthanc_starts_with_the_plugin_and_stops(tmp_path: Path) -> None:
    http, dicom, node = free_ports(3)
    (tmp_path / "token").write_text("t")
    one = pacs.Pacs(tmp_path / "orthanc", http, dicom)
    with Children() as children:
        child = one.start(children, f"http://127.0.0.1:{node}", tmp_path / "token")
        assert "fedpacs" in child.log.read_text(errors="replace").lower()
        pid = child.process.pid
    assert not Path(f"/proc/{pid}").exists()
    assert one.password_file.stat().st_mode & 0o077 == 0
