"""`fedpacs plugin install` and `uninstall` on a configuration folder as Debian ships it, comments and all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dicom_node import cli
from dicom_node.errors import ConfigError
from dicom_node.plugin_setup import SCRIPTS, OrthancFolder, install, missing, uninstall

MAIN = """{
  // the name "PythonScript": "/not/this.py" stands in a comment
  "Name" : "Hospital", /* "Fedpacs": {} */
  "Plugins" : [ "@LIB@" ]
}
"""
PYTHON = """{
  /**
   * Configuration to run Python scripts.  "http://x"
   **/
  "PythonScript" : "/etc/orthanc/sample.py", // ours
  "PythonVerbose" : false
}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    orthanc, libraries = tmp_path / "orthanc", tmp_path / "lib"
    orthanc.mkdir()
    libraries.mkdir()
    (libraries / "libOrthancPython.so").write_text("")
    (orthanc / "orthanc.json").write_text(MAIN.replace("@LIB@", str(libraries)))
    (orthanc / "python.json").write_text(PYTHON)
    return orthanc


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_it_keeps_comments_can_be_repeated_and_taken_back(folder: Path) -> None:
    before = contents(folder)
    done = install(OrthancFolder(folder), "http://127.0.0.1:8080", "a-token-of-more-than-twenty")
    assert done.todo == []
    after = contents(folder)
    script = folder / "fedpacs" / "fedpacs_plugin.py"
    assert after["python.json"] == before["python.json"].replace("/etc/orthanc/sample.py", str(script)), "and no more"
    assert after["orthanc.json"] == before["orthanc.json"]
    assert json.loads(after["fedpacs.json"]) == {
        "Fedpacs": {
            "Url": "http://127.0.0.1:8080",
            "TokenFile": str(folder / "fedpacs" / "api.token"),
            "SiteScript": "/etc/orthanc/sample.py",
        }
    }
    assert (folder / "fedpacs" / "api.token").stat().st_mode & 0o007 == 0
    assert "a-token" not in after["fedpacs.json"], "no secret in the configuration"
    assert all(ok for _, ok, _, _ in missing(OrthancFolder(folder), "a-token-of-more-than-twenty"))
    assert install(OrthancFolder(folder), "http://x", "a-token-of-more-than-twenty").changed == []
    assert contents(folder) == after
    uninstall(OrthancFolder(folder))
    assert contents(folder) == before, "as if it had never been there"
    assert uninstall(OrthancFolder(folder)).changed == []


def test_settings_of_the_admin_outlive_an_update(folder: Path) -> None:
    install(OrthancFolder(folder), "http://127.0.0.1:8080", "t" * 20)
    own = '{\n  // ours\n  "Fedpacs": {"Url": "unix:///run/n.sock", "TokenFile": "/t", "Hours": ["19:00-06:00"]}\n}\n'
    (folder / "fedpacs.json").write_text(own)
    (folder / "fedpacs" / SCRIPTS[0]).write_text("old")
    assert install(OrthancFolder(folder), "http://y", "u" * 20).changed == [
        str(folder / "fedpacs" / SCRIPTS[0]),
        str(folder / "fedpacs" / "api.token"),
    ]
    assert (folder / "fedpacs.json").read_text() == own


def test_without_other_sections_it_brings_all_in_its_own_file(folder: Path) -> None:
    (folder / "python.json").unlink()
    install(OrthancFolder(folder), "http://127.0.0.1:8080")
    document = json.loads((folder / "fedpacs.json").read_text())
    assert document["PythonScript"] == str(folder / "fedpacs" / "fedpacs_plugin.py") and "Plugins" not in document


def test_what_is_missing_is_told(folder: Path) -> None:
    install(OrthancFolder(folder), "http://127.0.0.1:8080", "t" * 20)
    (folder / "fedpacs" / SCRIPTS[1]).unlink()
    (folder.parent / "lib" / "libOrthancPython.so").unlink()
    (folder / "python.json").write_text(PYTHON)
    bad = {what: mend for what, ok, _, mend in missing(OrthancFolder(folder), "another")}
    wrong = {what for what, ok, _, _ in missing(OrthancFolder(folder), "another") if not ok}
    assert wrong == {"Orthanc's Python plugin", "plugin's files", "PythonScript", "plugin's token"}
    assert "fedpacs plugin install" in bad["plugin's files"]


@pytest.mark.parametrize("text", ["{ broken", "[]"])
def test_a_folder_that_is_not_orthancs_is_left_alone(folder: Path, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder"):
        OrthancFolder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no Orthanc configuration"):
        OrthancFolder(tmp_path / "empty")
    (folder / "other.json").write_text(text)
    before = contents(folder)
    with pytest.raises(ConfigError, match=r"other\.json"):
        OrthancFolder(folder)
    assert contents(folder) == before


def test_the_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["node", "init", str(tmp_path / "node"), "--http-port", "8123"]) == 0
    config = str(tmp_path / "node" / "node.toml")
    capsys.readouterr()
    assert cli.run(["plugin", "install", "--orthanc", str(folder), "--config", config, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["changed"]) == 7
    assert json.loads((folder / "fedpacs.json").read_text())["Fedpacs"]["Url"] == "http://127.0.0.1:8123"
    cli.run(["doctor", "--orthanc", str(folder), "--config", config, "--json"])
    findings = {one["what"]: one["ok"] for one in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["plugin's token"] and findings["section Fedpacs"] and findings["PythonScript"]
    assert cli.run(["plugin", "uninstall", "--orthanc", str(folder)]) == 0
    assert not (folder / "fedpacs").exists()
    assert cli.run(["plugin", "install", "--orthanc", str(tmp_path / "none")]) == 3
