"""`fedpacs model`: use a trained model inside the hospital, and see which networks are installed."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Use a trained model on your own studies, inside the hospital. Nothing is sent anywhere.",
    no_args_is_help=True,
    add_completion=False,
)


class SegType(StrEnum):
    """Segmentation Type (0062,0001)."""

    binary = "binary"
    fractional = "fractional"
    labelmap = "labelmap"


@app.callback()
def _model() -> None:
    """A model folder holds model.safetensors and model.json, as every training job leaves it."""


@app.command()
def predict(
    studies: Annotated[list[Path], typer.Argument(metavar="STUDY...", help="DICOM files or folders of them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    model: Annotated[Path, typer.Option("--model", help="Folder with model.safetensors and model.json.")],
    seg_type: Annotated[SegType, typer.Option("--type", help="Segmentation Type of the objects.")] = SegType.binary,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run a model: DICOM Segmentations for a segmentation task, predictions.jsonl for a classification task.

    Exit codes: 0 done, 4 nothing readable, 10 some series set aside (each with its reason).
    """
    from trainer.errors import PixelError
    from trainer.job import choose_device
    from trainer.modelcard import load_model
    from trainer.predict import predict as run

    if missing := [path for path in studies if not path.exists()]:
        raise PixelError(f"{missing[0]} does not exist; give DICOM files or folders")
    loaded = load_model(model)

    def report(series: str) -> None:
        if sys.stderr.isatty():
            typer.echo(f"{loaded.card.name}: series {series} done", err=True)

    done = run(
        loaded, studies, out, kind=seg_type.value, measurements=True, device=choose_device(device), report=report
    )
    if as_json:
        typer.echo(json.dumps({"outputs": done.outputs, "set_aside": done.set_aside, "out": str(out)}))
    else:
        for row in done.outputs:
            typer.echo(json.dumps(row))
        for name, reason in done.set_aside.items():
            typer.echo(f"set aside {name}: {reason}", err=True)
    if not done.outputs:
        reason = next(iter(done.set_aside.values()), "no image was found")
        raise PixelError(f"nothing could be predicted ({reason.rstrip('.')}); give DICOM image files")
    if done.set_aside:
        raise typer.Exit(10)


@app.command()
def networks(as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """List the installed networks that a project may name, with their arguments."""
    from trainer.networks import NETWORKS, describe

    rows = {name: describe(name) for name in sorted(NETWORKS)}
    if as_json:
        typer.echo(json.dumps(rows))
    else:
        for name, text in rows.items():
            typer.echo(f"{name}: {text}")


@app.command()
def labels(
    name: Annotated[str, typer.Argument(help="The evaluation or measurement to read, as the reports name it.")],
    catalogue: Annotated[Path, typer.Option("--catalogue", help="The node's catalogue.db.")],
    dataset: Annotated[Path, typer.Option("--dataset", help="The node's folder of de-identified files.")],
    label: Annotated[str, typer.Option("--label", help="The label's name in projects; by default the same.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Label studies from their structured reports (TID 1500 measurements and qualitative evaluations).

    Exit codes: 0 done, 9 no report says anything under that name, 10 some studies set aside (each with its reason).
    """
    from trainer.errors import CohortError
    from trainer.labels.landing import land_reports

    if not catalogue.exists():
        raise CohortError(f"the catalogue {catalogue.name} does not exist; run the node once so that it is made")
    done = land_reports(catalogue, dataset, name, label)
    if as_json:
        typer.echo(json.dumps({"labelled": done.labelled, "without": done.without, "set_aside": done.set_aside}))
    else:
        typer.echo(f"{done.labelled} studies labelled; the reports of {done.without} do not say {name!r}")
        for uid, reason in done.set_aside.items():
            typer.echo(f"set aside {uid}: {reason}", err=True)
    if done.set_aside:
        raise typer.Exit(10)
    if not done.labelled:
        raise CohortError(f"no report of an eligible study says anything under {name!r}; look at the name they use")
