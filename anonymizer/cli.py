"""The command `fedpacs deid`: de-identify files and folders, stand-alone, and account for each input."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from anonymizer.batch import Job, Line, load_key, plan_outputs, run
from anonymizer.errors import InputError, OutputError
from anonymizer.profile import load_profile, parse_tag
from anonymizer.report import Report

DONE_IN_PART = 10


def deid(
    sources: Annotated[
        list[Path] | None, typer.Argument(metavar="SRC...", help="Files and folders to de-identify.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the de-identified files.")] = None,
    profile: Annotated[str, typer.Option(help="basic, tcia, federated-default, or a TOML file.")] = "federated-default",
    key: Annotated[Path | None, typer.Option(help="Pseudonym key; written when it does not exist yet.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 is one for each core.")] = 0,
    report: Annotated[
        Path | None,
        typer.Option(help="JSON lines, one for each input [default: OUT/report.jsonl]; beside it NAME.md for people."),
    ] = None,
    face_preview: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Draw heads' surfaces before and after here, outside --out: they show faces and stay in the hospital.",
        ),
    ] = None,
    explain: Annotated[str, typer.Option(metavar="TAG", help="Say what happens to a tag, and why, and stop.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """De-identify DICOM files (PS3.15 Annex E): one output for each input, names kept, folders mirrored.

    Exit code 0 when every file came through, 10 when some were quarantined or rejected, 4 when none came through.
    """
    rules = load_profile(profile)
    if explain:
        text = rules.explain(parse_tag(explain))
        typer.echo(json.dumps({"tag": explain, "profile": rules.name, "explanation": text}) if as_json else text)
        return
    if not sources or out is None:
        raise typer.BadParameter("Name at least one SRC and --out DIR.")
    missing = [path for path in sources if not path.exists()]
    if missing:
        raise InputError(f"{missing[0]} does not exist; name files or folders that do.")
    if face_preview is not None and face_preview.resolve().is_relative_to(out.resolve()):
        raise typer.BadParameter(
            "--face-preview must lie outside --out: its pictures show faces and are not passed on."
        )
    job = Job(rules, load_key(key), previews=face_preview)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out} cannot be made ({error.strerror}); name another --out.") from None
    pairs = plan_outputs(sources, out)
    counts = _run(job, pairs, workers or os.cpu_count() or 1, report or out / "report.jsonl")
    _tell(counts, len(pairs), report or out / "report.jsonl", as_json, key is None)
    if counts["ok"] < len(pairs) or not pairs:
        raise typer.Exit(DONE_IN_PART if counts["ok"] else 4)


def _run(job: Job, pairs: list[tuple[Path, Path]], workers: int, report: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    readable = Report(job.profile)
    try:
        handle = report.open("w", encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise OutputError(f"The report {report} cannot be written ({error.strerror}); name another --report.") from None
    with handle, _Progress(len(pairs)) as progress:

        def each(line: Line) -> None:
            counts[line.status] += 1
            readable.add(line.study_instance_uid, line.status, line.reason, line.actions)
            handle.write(line.json() + "\n")
            progress.step()

        run(job, pairs, workers, each)
    try:
        report.with_suffix(".md").write_text(readable.text(), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"The report beside {report} cannot be written ({error.strerror}); make room.") from None
    return counts


def _tell(counts: Counter[str], total: int, report: Path, as_json: bool, no_key: bool) -> None:
    if as_json:
        summary: dict[str, Any] = {"inputs": total, **{k: counts[k] for k in ("ok", "quarantined", "rejected")}}
        typer.echo(json.dumps({**summary, "report": str(report)}))
        return
    typer.echo(
        f"{counts['ok']} of {total} de-identified, {counts['quarantined']} quarantined, {counts['rejected']} rejected; "
        f"the report is {report}."
    )
    if no_key:
        typer.echo("No --key was given: another run will give other pseudonyms.", err=True)


class _Progress:
    """A bar on standard error for people; nothing when standard error is no terminal."""

    def __init__(self, total: int) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True))
            self._task = self._bar.add_task("De-identifying", total=total)

    def __enter__(self) -> _Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self) -> None:
        if self._bar is not None:
            self._bar.advance(self._task)
