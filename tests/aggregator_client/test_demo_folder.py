"""The demo clears only what a demo made."""

from __future__ import annotations

from pathlib import Path

import pytest

from aggregator_client.demo.folder import fresh_folder
from dicom_node.errors import InputError, RefusedError


def test_a_second_run_starts_from_an_empty_folder(tmp_path: Path) -> None:
    with fresh_folder(tmp_path / "demo") as out:
        (out / "old" / "deep").mkdir(parents=True)
        (out / "old" / "file").write_text("x")
    with fresh_folder(tmp_path / "demo") as out:
        assert [entry.name for entry in out.iterdir()] == [".fedpacs-demo"]


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a demo's"), fresh_folder(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_link_out_of_the_folder_is_removed_but_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    with fresh_folder(tmp_path / "demo") as out:
        (out / "link").symlink_to(tmp_path / "precious")
    with fresh_folder(tmp_path / "demo") as out:
        assert not (out / "link").exists()
    assert (tmp_path / "precious" / "file").exists()


def test_two_demos_in_one_folder_are_refused(tmp_path: Path) -> None:
    with fresh_folder(tmp_path), pytest.raises(RefusedError, match="a demo is running"), fresh_folder(tmp_path):
        pass


def test_a_file_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("x")
    with pytest.raises(InputError, match="is a file"), fresh_folder(tmp_path / "demo"):
        pass
