"""Write docs/commands.md and docs/settings.md from the code (`make reference`); `--check` only compares."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

DOCS = Path(__file__).resolve().parent.parent / "docs"
NOTE = "<!-- Written by scripts/reference.py (`make reference`); edit the code's help texts instead. -->\n"


def commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below `command` that does something, with its path."""
    subcommands = getattr(command, "list_commands", None)
    if subcommands is None:
        yield path, command
        return
    context = click.Context(command, info_name=path[-1])
    for name in command.list_commands(context):  # type: ignore[attr-defined]
        child = command.get_command(context, name)  # type: ignore[attr-defined]
        if child is not None:
            yield from commands(child, (*path, name))


def commands_page() -> str:
    from dicom_node.cli import build

    lines = ["# Commands", "", NOTE, "Every command takes `--help`. Exit codes: [exit-codes.md](exit-codes.md).", ""]
    group = ""
    for path, command in commands(build(), ("fedpacs",)):
        if path[1] != group:
            group = path[1]
            lines += [f"## {' '.join(path[:2])}", ""]
        if len(path) > 2:
            lines += [f"### {' '.join(path)}", ""]
        usage = [piece for piece in command.collect_usage_pieces(click.Context(command)) if piece != "[OPTIONS]"]
        lines += ["    " + " ".join([*path, *usage, "[OPTIONS]"]), ""]
        lines += [_text(command.help or "").replace("\n", " "), ""]
        rows = [_option(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
        rows = [row for row in rows if row[0] and "--help" not in row[0]]
        if rows:
            lines += ["| argument or option | meaning | default |", "|---|---|---|"]
            lines += [f"| `{names}` | {_text(told)} | {default} |" for names, told, default in rows] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _option(parameter: click.Parameter) -> tuple[str, str, str]:
    told = getattr(parameter, "help", "") or ""
    if isinstance(parameter, click.Option) or parameter.param_type_name == "option":
        names = ", ".join([*parameter.opts, *parameter.secondary_opts])
        if not getattr(parameter, "is_flag", False):
            names += f" {parameter.make_metavar(click.Context(click.Command('x')))}"
    else:
        names = parameter.make_metavar(click.Context(click.Command("x")))
    default: Any = parameter.default
    if (
        default is None
        or callable(default)
        or isinstance(default, (bool, tuple, list))
        or "UNSET" in repr(default).upper()
    ):
        shown = ""
    else:
        shown = f"`{default}`"
    if parameter.required:
        shown = "required"
    return names.replace("|", "\\|"), told, shown


def _text(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def settings_page() -> str:
    from aggregator_client.coordinator import settings as coordinator
    from dicom_node import setup
    from dicom_node.config import NodeConfig

    lines = ["# Settings", "", NOTE]
    lines += [
        "`fedpacs node init` and `fedpacs coordinator init` write these files, commented. An unknown key is an error.",
        "",
    ]
    for file, model, template in (
        ("node.toml", NodeConfig, setup._TEMPLATE),
        ("coordinator.toml", coordinator.CoordinatorConfig, coordinator._TEMPLATE),
    ):
        lines += [f"## {file}", ""]
        for group, rows in groups(model, template).items():
            lines += [f"### [{group}] in {file}" if group else f"### Top of {file}", ""]
            lines += ["| key | default | meaning |", "|---|---|---|"]
            lines += [f"| `{key}` | {default} | {_text(told)} |" for key, default, told in rows] + [""]
    lines += _variables()
    return "\n".join(lines).rstrip() + "\n"


VARIABLES = {
    "FEDPACS_CONFIG": "`node.toml` of the commands of a node, when `--config` is not given.",
    "FEDPACS_COORDINATOR": "the coordinator's folder, when `--dir` is not given.",
    "FEDPACS_BACKUP_PASSPHRASE": "the passphrase of `backup` and `restore`, when `--key` is not given.",
    "FEDPACS_TRACE": "`1`: show the traceback of a fault. Look through it before you pass it on, it may quote data.",
}


def _variables() -> list[str]:
    rows = [f"| `{name}` | {told} |" for name, told in VARIABLES.items()]
    return ["## Environment variables", "", "| variable | meaning |", "|---|---|", *rows, ""]


# Keys that the commented files do not show, or not with a remark of their own.
MEANINGS = {
    "node.timezone": "time zone of the hours in this file",
    "dicom.host": "interface to listen on",
    "dicom.port": "DICOM port",
    "dicom.ae_title": "AE title that modalities send to",
    "dicom.max_associations": "associations at the same time; further ones are rejected",
    "dicom.max_pdu": "largest PDU taken, bytes",
    "dicom.tls_certificate": "set all three for mutual TLS",
    "dicom.tls_key": "key of that certificate",
    "dicom.tls_ca": "authority of the peers' certificates",
    "storage.keys": "vault key, tokens, signing keys, TLS; 0700",
    "storage.catalogue": "records of the de-identified studies",
    "storage.audit": "the audit log",
    "storage.logs": "JSON lines without identified values",
    "storage.federation": "models, checkpoints of rounds",
    "storage.run": "what running processes tell of themselves",
    "deid.uid_root": "root of the new UIDs",
    "policy.modalities": "modalities that may take part; [] means any",
    "policy.sop_classes": "SOP Class UIDs that may take part; [] means any",
    "policy.min_age_years": "youngest patient that may take part",
    "policy.max_age_years": "oldest patient that may take part",
    "policy.exclude_burned_in": "exclude images that say they have letters burned in",
    "policy.require_labels": "a study without a label does not take part",
    "policy.paused": "no training, whatever the pause button says",
    "web.port": "port of the console and REST interface",
    "web.token_file": "first password of the console, and token of the plugin",
    "web.unix_socket": "a second door, for an Orthanc on this machine",
    "web.tls_certificate": "needed for any host but loopback",
    "web.tls_key": "key of that certificate",
    "web.oidc.issuer": "OpenID Connect provider, https; empty: off",
    "web.oidc.client_id": "how the provider knows the console",
    "web.oidc.client_secret_file": "file with the client's secret",
    "web.oidc.public_url": "where browsers find the console",
    "web.oidc.name_claim": "claim that holds the account's name",
    "web.oidc.roles_claim": "claim that holds the roles",
    "web.oidc.roles": "which values of that claim give which role",
    "web.proxy.addresses": "networks of the reverse proxy whose headers are believed; empty: off",
    "web.proxy.user_header": "header with the account's name",
    "web.proxy.role_header": "header with the role",
    "federation.poll_seconds": "how often the coordinator is asked for work",
    "federation.proxy": "HTTP proxy on the way to the coordinator, `http://host:port`",
    "results.tls_certificate": "this node's certificate, for mutual TLS",
    "results.tls_key": "key of that certificate",
    "inference.poll_seconds": "how often new studies are looked for",
    "privacy.epsilon": "the most a patient may lose over all projects that train with differential privacy",
    "privacy.delta": "the delta that epsilon goes with",
    "orthanc.username": "account in Orthanc",
    "orthanc.password_file": "file with its password",
    "orthanc.poll_seconds": "how often Orthanc is asked for changes",
    "dashboard.tls_certificate": "needed for any host but loopback",
    "dashboard.tls_key": "key of that certificate",
    **{
        f"dashboard.{rest}": f"as `web.{rest}` of a node"
        for rest in (
            *("oidc.issuer", "oidc.client_id", "oidc.client_secret_file", "oidc.public_url", "oidc.name_claim"),
            *("oidc.roles_claim", "oidc.roles", "proxy.addresses", "proxy.user_header", "proxy.role_header"),
        )
    },
}


def groups(model: type[BaseModel], template: str) -> dict[str, list[tuple[str, str, str]]]:
    """{group: [(key, default, meaning)]} of a settings model; the meaning is the remark in the file that `init` writes."""
    remarks = _remarks(template)
    found: dict[str, list[tuple[str, str, str]]] = {}
    for path, default in leaves(model):
        group, _, key = path.rpartition(".")
        found.setdefault(group, []).append((key, default, MEANINGS.get(path) or remarks.get(path, "")))
    return found


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, default as TOML) of every setting, those of this level first."""
    nested = []
    for name, field in model.model_fields.items():
        if not prefix and name in ("path", "root"):
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            nested.append((f"{prefix}{name}.", field.annotation))
        else:
            yield prefix + name, _toml(field.get_default(call_default_factory=True), field.is_required())
    for name, annotation in nested:
        yield from leaves(annotation, name)


def _toml(value: Any, required: bool) -> str:
    if required:
        return "written by `init`"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (tuple, list)):
        return "`[" + ", ".join(f'"{one}"' for one in value) + "]`"
    return "`{}`" if value == {} else f"`{value}`" if isinstance(value, (int, float)) else f'`"{value}"`'


def _remarks(template: str) -> dict[str, str]:
    group, found = "", {}
    for line in template.splitlines():
        bare = line.strip().removeprefix("# ")
        if line.startswith("["):
            group = line[1 : line.index("]")] + "."
        elif " = " in bare and " # " in bare.replace("  #", " #"):
            key, told = bare.split(" = ")[0].strip(), bare.rsplit("#", 1)[1].strip()
            found[group + key] = told.replace("{{", "{").replace("}}", "}")
    return found


PAGES = {"commands.md": commands_page, "settings.md": settings_page}


def main() -> int:
    old = []
    for name, page in PAGES.items():
        file, text = DOCS / name, page()
        if file.exists() and file.read_text(encoding="utf-8") == text:
            continue
        old.append(name)
        if "--check" not in sys.argv:
            file.write_text(text, encoding="utf-8")
    if old:
        print(("Out of date: " if "--check" in sys.argv else "Wrote ") + ", ".join(old))
    return 1 if old and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
