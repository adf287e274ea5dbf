"""The shipped tables, the profiles over them, the conditional actions, and bringing in another edition."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anonymizer import load_profile
from anonymizer.editions import diff
from anonymizer.errors import KeyFileError, ProfileError
from anonymizer.profile import parse_tag, resolve
from anonymizer.pseudonym import Pseudonyms
from anonymizer.tables import safe_private, table_e1_1

KEY = bytes(range(32))


def test_the_whole_table_is_shipped_with_its_edition() -> None:
    table = table_e1_1()
    assert (table["edition"], table["options_edition"]) == ("2026c", "2025b")
    assert len(table["rows"]) == 655
    assert {row["basic"] for row in table["rows"].values()} == {
        "D",
        "Z",
        "X",
        "U",
        "Z/D",
        "X/Z",
        "X/D",
        "X/Z/D",
        "X/Z/U*",
    }
    assert sum("dates_modified" in row for row in table["rows"].values()) > 150
    assert sum(listed for rows in safe_private().values() for _, listed in rows.values()) == 87


def test_two_editions_are_told_apart() -> None:
    old = {"rows": {"00100010": {"basic": "Z"}, "00100020": {"basic": "Z"}, "00100030": {"basic": "Z", "name": "a"}}}
    new = {"rows": {"00100010": {"basic": "Z/D"}, "00100030": {"basic": "Z", "name": "b"}, "00100040": {"basic": "X"}}}
    told = diff(old, new)
    assert told == {"added": ["00100040"], "removed": ["00100020"], "changed": ["00100010 basic: Z -> Z/D"]}
    assert diff(table_e1_1(), table_e1_1()) == {"added": [], "removed": [], "changed": []}


@pytest.mark.parametrize(
    ("basic", "kind", "action"),
    [
        ("Z/D", "1", "D"),
        ("Z/D", "2", "Z"),
        ("X/Z", "2", "Z"),
        ("X/Z", "3", "X"),
        ("X/D", "1", "D"),
        ("X/D", "3", "X"),
        ("X/Z/D", "1C", "D"),
        ("X/Z/D", "2C", "Z"),
        ("X/Z/D", "", "X"),
        ("X/Z/U*", "1", "U"),
        ("X/Z/U*", "3", "X"),
    ],
)
def test_conditional_actions_follow_the_type(basic: str, kind: str, action: str) -> None:
    assert resolve(basic, kind) == action


def test_the_type_is_looked_up_in_the_objects_own_iod() -> None:
    basic = load_profile("basic")
    ct, dx = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.1.1"
    rules = {basic.rule(0x00080023, sop) for sop in (ct, dx)}  # type: ignore[arg-type]
    assert {rule.action for rule in rules if rule} <= {"Z", "D"}
    assert "Type" in basic.rule(0x00080023, ct).why  # type: ignore[union-attr]


def test_a_site_puts_its_own_rules_on_top(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('base = "tcia"\n[actions]\nStudyDescription = "X"\n"0018,1000" = "K"\n')
    profile = load_profile(path)
    assert profile.options == load_profile("tcia").options
    assert profile.rule(0x00081030).action == "X"  # type: ignore[union-attr]
    assert profile.rule(0x00181000).action == "K"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text",
    ["options = ['everything']", "colour = 1", "[actions]\nNoSuchWord = 'X'", "[actions]\n'00100010' = 'Q'", "="],
)
def test_a_wrong_profile_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    assert caught.value.exit_code == 3


def test_explain_names_the_rule() -> None:
    profile = load_profile("federated-default")
    assert "cleaned [C]" in profile.explain(parse_tag("StudyDescription"))
    assert "removed [X]" in profile.explain(parse_tag("(0010,1040)"))
    assert "not listed" in profile.explain(parse_tag("0018,0060"))
    assert "safe list" in profile.explain(0x00091001)
    with pytest.raises(ProfileError):
        parse_tag("nonsense")


def test_pseudonyms_are_keyed_stable_and_valid() -> None:
    one, other = Pseudonyms(KEY), Pseudonyms(bytes(32))
    assert one.uid("1.2.3\0") == one.uid("1.2.3 ") == Pseudonyms(KEY).uid("1.2.3")
    assert one.uid("1.2.3") != other.uid("1.2.3") != one.uid("1.2.4")
    assert one.uid("1.2.3").startswith("2.25.") and len(one.uid("1.2.3")) <= 64
    rooted = Pseudonyms(KEY, "1.2.826.0.1.3680043.8.498").uid("1.2.3")
    assert rooted.startswith("1.2.826.0.1.3680043.8.498.") and len(rooted) <= 64
    assert one.patient(" 4711 ") == one.patient("4711") != other.patient("4711")
    shifts = {one.date_shift_days(str(n)) for n in range(200)}
    assert min(shifts) >= -3650 and max(shifts) <= -1 and len(shifts) > 150
    with pytest.raises(KeyFileError):
        Pseudonyms(b"short")
    with pytest.raises(ProfileError):
        Pseudonyms(KEY, "1.2.x")


def test_the_shipped_json_is_what_the_tables_module_reads() -> None:
    path = Path(__file__).parents[2] / "anonymizer" / "data" / "table_e1_1.json"
    assert json.loads(path.read_text()) == table_e1_1()
