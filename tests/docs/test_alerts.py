"""The Prometheus alerts, tried by promtool: each fires on a node that is ill in its way, and none on one that is well."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.docs.documented import ROOT

RULES = ROOT / "deploy" / "prometheus" / "fedpacs.rules.yml"
PROMTOOL = shutil.which("promtool", path=str(Path(sys.executable).parent)) or shutil.which("promtool")
pytestmark = pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian's prometheus) is not installed")

SAMPLES = 700  # one each quarter of an hour: a week and more
WELL = {
    'up{job="fedpacs"}': "1x",
    'fedpacs_process_up{process="receiver"}': "1x",
    'fedpacs_process_restarts_total{process="receiver"}': "2x",
    "fedpacs_disk_refusing": "0x",
    "fedpacs_disk_free_bytes": "500000000000x",
    "fedpacs_oldest_waiting_seconds": "600x",
    "fedpacs_paused": "0x",
    'fedpacs_studies{state="quarantined"}': "4x",
    'fedpacs_not_taken_total{ae_title="CT1",reason="quota"}': "3x",
    "fedpacs_audit_records": "1+1x",
}
# one series that goes wrong, in promtool's notation (first value, step, times)
ILL = {
    "FedpacsNodeDown": ('up{job="fedpacs"}', "0x"),
    "FedpacsProcessDown": ('fedpacs_process_up{process="receiver"}', "0x"),
    "FedpacsProcessRestarts": ('fedpacs_process_restarts_total{process="receiver"}', "2+1x"),
    "FedpacsRefusing": ("fedpacs_disk_refusing", "1x"),
    "FedpacsDiskFillsUp": ("fedpacs_disk_free_bytes", "500000000000-700000000x"),
    "FedpacsStudyWaits": ("fedpacs_oldest_waiting_seconds", "25000x"),
    "FedpacsQuarantineGrows": ('fedpacs_studies{state="quarantined"}', "4+1x"),
    "FedpacsNotTaken": ('fedpacs_not_taken_total{ae_title="CT1",reason="quota"}', "3+6x"),
    "FedpacsPausedLong": ("fedpacs_paused", "1x"),
    "FedpacsAuditShrank": ("fedpacs_audit_records", "3000-1x"),
}


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROMTOOL or "", *words], capture_output=True, text=True, check=False, timeout=60)


def fired(file: Path, nodes: Mapping[str, Mapping[str, str]]) -> dict[str, set[str]]:
    """The alerts that fire after a week of each node's series; promtool tells of them where none was expected."""
    names = re.findall(r"- alert: (\w+)", RULES.read_text())
    tests = [
        {
            "name": node,
            "interval": "15m",
            "input_series": [
                {"series": _labelled(name), "values": f"{values}{SAMPLES}"} for name, values in series.items()
            ],
            "alert_rule_test": [{"eval_time": "170h", "alertname": name} for name in names],
        }
        for node, series in nodes.items()
    ]
    file.write_text(
        json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "15m", "tests": tests})
    )  # JSON is YAML
    told = promtool("test", "rules", str(file))
    found = {node: set[str]() for node in nodes}
    for node, alert in re.findall(r"name: (\w+),\s+alertname: ?(\w+)", told.stdout + told.stderr):
        found[node].add(alert)
    assert any(found.values()) == (told.returncode != 0), told.stdout + told.stderr
    return found


def _labelled(name: str) -> str:
    bare, _, labels = name.rstrip("}").partition("{")
    return f'{bare}{{instance="north",{labels}}}'


def test_promtool_takes_the_alerts() -> None:
    done = promtool("check", "rules", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_alert_fires_on_a_node_that_is_ill_its_way_and_none_on_one_that_is_well(tmp_path: Path) -> None:
    nodes: dict[str, dict[str, str]] = {
        "well": WELL,
        **{alert: WELL | {name: values} for alert, (name, values) in ILL.items()},
    }
    assert fired(tmp_path / "alerts.yml", nodes) == {"well": set(), **{alert: {alert} for alert in ILL}}


def test_every_alert_is_tried_and_every_series_is_one_that_the_node_tells() -> None:
    assert set(re.findall(r"- alert: (\w+)", RULES.read_text())) == set(ILL)
    told = (ROOT / "dicom_node" / "web" / "metrics.py").read_text()
    missing = {
        name for name in WELL if (bare := re.split("{", name)[0].removesuffix("_total")) != "up" and bare not in told
    }
    assert not missing
