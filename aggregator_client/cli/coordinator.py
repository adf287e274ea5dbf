"""`fedpacs coordinator`: make a coordinator, let hospitals in, run a project, watch it, take its result out."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.live import Live

from aggregator_client.cli import backup, rotation
from dicom_node.cli.output import JsonOption, print_json, print_table

app = typer.Typer(help="The federation's coordinator: make it, let hospitals in, run projects.", no_args_is_help=True)
app.command("rotate")(rotation.rotate_coordinator)
app.command("revoke")(rotation.revoke_member)
app.command()(backup.backup)
app.command()(backup.restore)
WATCH_SECONDS = 2.0
DirOption = Annotated[
    Path, typer.Option("--dir", metavar="DIR", help="The coordinator's folder.", envvar="FEDPACS_COORDINATOR")
]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make the coordinator in.")],
    host: Annotated[str, typer.Option("--host", help="Host name or IP address hospitals dial.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="The one port they need.", min=1, max=65535)] = 9092,
    name: Annotated[str, typer.Option("--name", help="Who asks the hospitals.")] = "Coordinator",
    as_json: JsonOption = False,
) -> None:
    """Make DIR/coordinator.toml, the coordinator's keys, and its own TLS authority and certificate."""
    from aggregator_client.coordinator import settings

    config = settings.create(folder, name=name, host=host, port=port)
    fingerprint = config.keys().fingerprint
    if as_json:
        print_json({"config": str(config.path), "url": config.url, "fingerprint": fingerprint})
        return
    print(f"Made {config.path}; hospitals will dial {config.url}.")
    print(f"Fingerprint of your keys: {fingerprint} (read it out to each hospital you invite).")
    print(
        f"Keep a copy of {config.storage.keys} elsewhere. Next: fedpacs coordinator invite NAME --out FILE --dir {folder}"
    )


@app.command()
def invite(
    site: Annotated[str, typer.Argument(metavar="NAME", help="The hospital's name in the federation.")],
    out: Annotated[Path, typer.Option("--out", help="File to send to that hospital.")],
    folder: DirOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write one hospital's invitation: address, TLS authority, your public keys and its token."""
    from aggregator_client.coordinator import settings

    config = settings.load(folder)
    invitation = config.invite(site)
    invitation.write(out)
    if as_json:
        print_json({"file": str(out), "site": site, "address": config.url, "fingerprint": invitation.fingerprint})
        return
    print(f"Wrote {out} for {site!r}. Send it to that hospital alone: whoever holds it can enrol under that name.")
    print(f"Read this fingerprint to them over the telephone: {invitation.fingerprint}")


@app.command()
def enrol(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The enrolment the hospital sent back.")],
    folder: DirOption = Path(),
    expect: Annotated[str, typer.Option("--expect", help="Fingerprint the hospital read out; refuse any other.")] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="The hospital made new keys: replace the old ones.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Take a hospital in with the public keys it sent."""
    from aggregator_client.coordinator import settings
    from aggregator_client.errors import RefusedError
    from aggregator_client.invitations import Enrolment

    config = settings.load(folder)
    enrolment = Enrolment.read(file)
    if expect and expect.strip().lower() != enrolment.fingerprint:
        raise RefusedError(
            f"{file} carries keys with fingerprint {enrolment.fingerprint}, not {expect}: call {enrolment.site!r} again."
        )
    member = config.members.enrol(enrolment, replace=replace)
    if as_json:
        print_json({"site": member.name, "fingerprint": member.fingerprint})
        return
    print(f"{member.name!r} is enrolled. Its fingerprint: {member.fingerprint} (compare it over the telephone).")


@app.command()
def members(folder: DirOption = Path(), as_json: JsonOption = False) -> None:
    """List the hospitals invited and enrolled."""
    from aggregator_client.coordinator import settings

    config = settings.load(folder)
    enrolled = {member.name: member for member in config.members.list()}
    names = sorted(set(config.members.invited()) | enrolled.keys())
    rows = [
        {
            "site": name,
            "enrolled": name in enrolled,
            "fingerprint": enrolled[name].fingerprint if name in enrolled else None,
            "since": enrolled[name].enrolled_at if name in enrolled else None,
        }
        for name in names
    ]
    revision, roster = config.members.revision()
    gone = [
        {"site": one.member.name, "fingerprint": one.member.fingerprint, "at": one.at, "reason": one.reason}
        for one in config.members.revocations()
    ]
    if as_json:
        print_json({"members": rows, "revoked": gone, "revision": revision, "roster": roster})
        return
    table = [
        (row["site"], "enrolled" if row["enrolled"] else "invited", row["fingerprint"], _when(row["since"]))
        for row in rows
    ]
    table += [(str(one["site"]), "revoked", str(one["fingerprint"]), _when(one["at"])) for one in gone]
    print_table(f"Hospitals (roster revision {revision})", ("site", "state", "fingerprint", "since"), table)


@app.command()
def remove(
    site: Annotated[str, typer.Argument(metavar="NAME", help="The hospital to take out.")], folder: DirOption = Path()
) -> None:
    """Take a hospital out: its keys and its invitation are void from the next start of a run."""
    from aggregator_client.coordinator import settings

    settings.load(folder).members.remove(site)
    print(f"{site!r} is out.")


RunArgument = Annotated[
    str, typer.Argument(metavar="[DIGEST]", help="The beginning of the project's digest, when several were run.")
]


@app.command()
def run(
    project: Annotated[Path, typer.Argument(metavar="PROJECT", help="The signed project file.")],
    folder: DirOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Run a project to its end: wait for hospitals, go through the rounds, keep the model of each.

    Killed or stopped at any moment, it goes on with `resume`.
    """
    _run(folder, project, resume=False, as_json=as_json)


@app.command()
def resume(
    digest: RunArgument = "",
    folder: DirOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Go on with a run that was stopped, at the round it was in."""
    from aggregator_client.coordinator import overview, settings

    found = overview.one_run(settings.load(folder), digest)
    _run(folder, found / "project.json", resume=True, as_json=as_json)


@app.command()
def retrain(
    out: Annotated[Path, typer.Option("--out", help="The signed project to write, for the hospitals to approve.")],
    version: Annotated[str, typer.Option("--version", help="The new version.")],
    digest: RunArgument = "",
    start: Annotated[bool, typer.Option("--run/--sign-only", help="Start it, or only sign it.")] = True,
    folder: DirOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Train a project again from its first round, for what the hospitals' data are now: without whoever has withdrawn since.

    Each hospital must approve the new version; the earlier run keeps its model and evidence.
    """
    from aggregator_client.coordinator import overview, retraining, settings
    from aggregator_client.project import SignedProject

    config = settings.load(folder)
    earlier = SignedProject.read(overview.one_run(config, digest) / "project.json")
    signed = retraining.again(config, earlier, version, out)
    print(f"Signed {signed.document.name} version {version} as {out} (digest {signed.digest}).", file=sys.stderr)
    if start:
        _run(folder, out, resume=False, as_json=as_json)
    elif as_json:
        print_json({"file": str(out), "digest": signed.digest, "version": version})


def _run(folder: Path, project: Path, resume: bool, as_json: bool) -> None:
    from aggregator_client.coordinator import server

    with _stopped_by_sigterm():
        result = server.run(folder, project, resume=resume, progress=_tell)
    if as_json:
        print_json(result)
        return
    print(f"Done: {result['rounds']} rounds. Model: {result['model']} (SHA-256 {result['sha256']}).")
    print(f"Take it out with its evidence: fedpacs coordinator export --out evidence.zip --dir {folder}")


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does: every socket closed, everything done so far kept."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(facts: Mapping[str, Any]) -> None:
    """One line on stderr for each event worth a person's attention."""
    print(f"{time.strftime('%H:%M:%S')} {_line(facts)}", file=sys.stderr, flush=True)


def _line(facts: Mapping[str, Any]) -> str:
    event, site = str(facts.get("event", "")), facts.get("site")
    if event == "round":
        return f"round {facts['round']} of {facts['rounds']} ({facts['step']}): asking {', '.join(facts['sites'])}"
    if event in ("update", "metrics"):
        figures = [f"{facts['cases']} cases", f"{facts['seconds']:.1f} s", f"{facts['bytes']} bytes"]
        figures += [f"{name} {facts[name]:.4f}" for name in ("loss", "metric") if facts.get(name) is not None]
        return f"round {facts['round']}: {site} answered ({', '.join(figures)})"
    if "reason" in facts:
        return f"{'round ' + str(facts['round']) + ': ' if 'round' in facts else ''}{site or 'run'} {event}: {facts['reason']}"
    rest = ", ".join(f"{key} {value}" for key, value in facts.items() if key not in ("event", "site", "round"))
    where = f"round {facts['round']}: " if "round" in facts else ""
    return f"{where}{site + ' ' if site else ''}{event}{' (' + rest + ')' if rest else ''}"


@app.command()
def status(
    digest: RunArgument = "",
    folder: DirOption = Path(),
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every two seconds until Ctrl-C.")] = False,
) -> None:
    """Show each run: its round, every hospital's figures, who stalls and why, mean and worst hospital by round."""
    from aggregator_client.cli import runs_table
    from aggregator_client.coordinator import overview, settings

    config = settings.load(folder)

    def runs() -> list[dict[str, Any]]:
        return [overview.overview(found) for found in overview.find_runs(config, digest)]

    if watch and not as_json and sys.stdout.isatty():
        with Live(runs_table.tables(runs()), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_SECONDS)
                live.update(runs_table.tables(runs()), refresh=True)
    while True:
        if as_json:
            print_json({"coordinator": config.name, "url": config.url, "runs": runs()})
        else:
            runs_table.show(runs())
        if not watch:
            return
        time.sleep(WATCH_SECONDS)


@app.command()
def dashboard(
    folder: DirOption = Path(),
    port: Annotated[int, typer.Option("--port", help="Port of the dashboard.", min=1, max=65535)] = 8090,
    host: Annotated[
        str, typer.Option("--host", help="Anything but loopback needs TLS (docs/console.md).")
    ] = "127.0.0.1",
) -> None:
    """Show runs, hospitals and results in the browser, and steer them there, until Ctrl-C."""
    from aggregator_client.coordinator import settings
    from aggregator_client.coordinator.dashboard.serve import serve

    serve(settings.load(folder), host, port)


@app.command()
def account(
    name: Annotated[str, typer.Argument(metavar="NAME", help="How they log in to the dashboard.")],
    role: Annotated[str, typer.Option("--role", help="viewer, coordinator (steers runs) or admin.")] = "viewer",
    remove: Annotated[bool, typer.Option("--remove", help="Remove the account instead.")] = False,
    password_file: Annotated[
        Path | None, typer.Option("--password-file", help="Where the password stands; - is standard input.")
    ] = None,
    folder: DirOption = Path(),
) -> None:
    """Make an account of the dashboard, or remove it. The first one must be an admin."""
    import getpass
    from contextlib import closing

    from aggregator_client.coordinator import settings
    from aggregator_client.coordinator.dashboard.app import open_accounts
    from dicom_node.audit import AuditLog
    from dicom_node.cli.people import read_password

    config = settings.load(folder)
    with closing(AuditLog(config.root / "audit.db")) as audit:
        with closing(open_accounts(config, audit)) as accounts:
            if remove:
                accounts.remove(name, getpass.getuser())
            else:
                accounts.add(name, role, read_password(password_file), getpass.getuser())
    print(f"{name} may not log in any more." if remove else f"{name} may log in as {role}.")


@app.command()
def export(
    out: Annotated[Path, typer.Option("--out", help="Zip file to write.")],
    digest: RunArgument = "",
    folder: DirOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write model, project, participants, figures and signatures as one evidence bundle."""
    from dataclasses import asdict

    from aggregator_client.coordinator import evidence, overview, settings

    config = settings.load(folder)
    found = evidence.export(config, overview.one_run(config, digest), out)
    if as_json:
        print_json({"file": str(out), **asdict(found)})
        return
    print(f"Wrote {out}: {found.project}, model after round {found.round} of {found.rounds}.")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An evidence bundle.")],
    fingerprint: Annotated[
        str, typer.Option("--fingerprint", help="The coordinator's fingerprint as you know it; refuse any other.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Check an evidence bundle: every digest, the coordinator's and each hospital's signatures. Exit code 8 if one fails."""
    from dataclasses import asdict

    from aggregator_client.coordinator import evidence

    found = evidence.verify(file, fingerprint)
    if as_json:
        print_json({"ok": True, **asdict(found)})
        return
    print(f"{file} is whole: {found.project}, round {found.round} of {found.rounds}, by {found.coordinator}.")
    print(
        f"Coordinator's fingerprint: {found.fingerprint}" + ("" if fingerprint else "  (compare it with a known one)")
    )
    for name, mark in found.participants.items():
        print(f"  {name}: {mark}")
    print(f"{found.receipts} signed messages of these hospitals; model SHA-256 {found.model_sha256}.")


def _when(at: object) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) if isinstance(at, float) else ""
