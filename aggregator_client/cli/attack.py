"""`fedpacs audit attack`: a project's would-be update under attack, before the hospital shares any."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from aggregator_client.cli.project import FileOrDigest, resolve
from dicom_node.audit import AuditLog
from dicom_node.cli.output import ConfigOption, JsonOption, find_config, print_json, print_table


def attack(
    project: FileOrDigest,
    targets: Annotated[int, typer.Option("--targets", min=4, max=64, help="Images to attack, each of a patient.")] = 16,
    steps: Annotated[int, typer.Option("--steps", min=1, max=20000, help="Steps of each search for an image.")] = 200,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Attack what a project would send of this hospital's own images, and record what was reached.

    Exit code 5 when [privacy] attack_bound of node.toml is set and passed. The picture shows patients: it stays in the hospital.
    """
    from rich.console import Console
    from rich.progress import Progress

    from aggregator_client import attack as trial
    from aggregator_client.errors import RefusedError

    node = find_config(config)
    signed = resolve(project, node)
    screen = Console(stderr=True)
    with Progress(console=screen, disable=not screen.is_terminal, transient=True) as bar:
        task = bar.add_task("Attacking")
        facts = trial.run(
            node, signed.document, targets, steps, lambda done, total: bar.update(task, completed=done, total=total)
        )
    with closing(AuditLog(node.storage.audit, readonly=True)) as log:
        fault = trial.fault(node, log, signed.digest)
    if as_json:
        print_json({**facts, "bound": node.privacy.attack_bound, "held_back": fault})
    else:
        names = ("batch", "targets", "candidates", "matched", "recognised", "correlation", "psnr")
        rows = [(told, *(facts[side][name] for name in names)) for told, side in SIDES]
        print_table("Attack on this hospital's own images", ("what was attacked", *names), rows)
        print(f"Originals beside reconstructions: {facts['picture']} (shows patients: it must not leave the hospital).")
        if not facts["calibrated"]:
            print("The attack failed on bare gradients too: its failure says nothing of the defence.")
    if fault:
        raise RefusedError(f"Updates of this project are held back ([privacy] attack_bound): {fault}.")


SIDES = (("bare gradient of one image", "plain"), ("one step of the project", "leaves"))
