"""How `fedpacs node status` tells people what the console's home page shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dicom_node.cli.output import print_table
from dicom_node.web.words import duration, size

_STEPS = ("received", "complete", "deidentified", "eligible", "trained")


def show(facts: Mapping[str, Any]) -> None:
    """Print `NodeView.status()`, with "gpus" and "left" beside it."""
    _head(facts)
    pipeline = facts["pipeline"]
    print_table("Pipeline", ("step", "studies"), [(step, pipeline[step]) for step in _STEPS])
    aside = [f"{name} {pipeline[name]}" for name in ("receiving", "waiting", "excluded", "quarantined", "withdrawn")]
    print(f"{', '.join(aside)}; {pipeline['instances']} instances, {pipeline['patients']} patients.")
    for reason, count in facts["reasons"].items():
        print(f"  {reason}: {count}")
    _senders(facts["senders"])
    processes = [(name, one.get("state", ""), one.get("restarts", "")) for name, one in facts["processes"].items()]
    print_table("Processes", ("process", "state", "restarts"), processes)
    _machine(facts)
    _work(facts)
    for line in _privacy(facts["privacy"]):
        print(line)
    if facts["last_error"]:
        print(f"Last error: {facts['last_error']}")


def _head(facts: Mapping[str, Any]) -> None:
    node, pause = facts["node"], facts["pause"]
    state = "not paused"
    if pause:
        why = f": {pause['reason']}" if pause["reason"] else ""
        state = f"PAUSED by {pause['by'] or 'somebody'}{why}"
    print(f"{node['name']}: AE {node['ae_title']}, port {node['port']}, {state}")


def _senders(senders: list[Mapping[str, Any]]) -> None:
    names = ("ae_title", "instances", "duplicate", "conflict", "quarantined", "echoes")
    rows = [
        [*(sender[name] for name in names), f"{sender['bytes'] / 1e6:.1f}", sum(sender["not_taken"].values())]
        for sender in senders
    ]
    columns = ("AE title", "stored", "duplicates", "conflicts", "quarantined", "C-ECHO", "MB", "not taken")
    print_table("Senders", columns, rows)
    for sender in senders:
        for reason, count in sender["not_taken"].items():
            print(f"  {sender['ae_title']}: {reason}: {count}")


def _machine(facts: Mapping[str, Any]) -> None:
    disk, waiting = facts["disk"], facts["oldest_waiting_s"]
    print(f"Disk: {disk['free_mb']} MB free (refuses below {disk['min_free_mb']} MB).")
    if disk["refusing"]:
        print("REFUSING objects with 0xA700 until there is more: free the disk.")
    for card in facts["gpus"]:
        used = f"{card['memory_mb']} of {card['memory_total_mb']} MB"
        print(f"GPU: {card['name']}, {'?' if card['busy'] is None else card['busy']} % busy, {used}.")
    print(f"Oldest waiting study: {'none' if waiting is None else duration(waiting)}. Opt-outs: {facts['optouts']}.")


def _work(facts: Mapping[str, Any]) -> None:
    training, left = facts["training"], facts["left"]
    why = f" ({training['reason']})" if training["reason"] else ""
    print(
        f"Federation: {training['state']}{why}. Left this hospital: {left['messages']} messages, {size(left['bytes'])}."
    )
    job = training["job"]
    if job:
        where = f"round {job['round']} of {job['rounds']}, step {job['step']} of {job['steps'] or '?'}"
        print(f"Training {job['name']}: {where}, {duration(job['left_s'])} left.")
    for warning in facts["drift"].values():
        print(f"DRIFT: {warning}")


def _privacy(facts: dict[str, Any]) -> list[str]:
    """What noisy trainings spent of the worst patient's budget; nothing before the first."""
    if not facts["projects"]:
        return []
    spent = f"epsilon {facts['epsilon']:.2f} of {facts['allowed']:g} at delta {facts['delta']:g}"
    lines = [f"Privacy spent, worst patient over all projects with noise: {spent}; {facts['left']:.2f} left."]
    for one in facts["projects"]:
        told = f"epsilon {one['epsilon']:.2f} at delta {one['delta']:g} by {one['unit']}"
        lines.append(f"  {one['project'][:12]}: {told} in {one['trainings']} trainings, {one['accountant']}")
    return lines
