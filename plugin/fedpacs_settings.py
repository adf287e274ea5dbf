# fedpacs plugin for Orthanc. Copyright (C) 2026 the fedpacs authors. SPDX-License-Identifier: GPL-3.0-or-later
"""The section Fedpacs of Orthanc's configuration: its settings, their defaults, and what is wrong with them in one sentence each.

A wrong value is replaced by its default and told; a wrong rule of what is offered makes the plugin offer nothing, for the
administrator meant to withhold something.
"""

import json
import re
import urllib.parse

DEFAULTS = {
    "Enabled": True,
    "Url": "http://127.0.0.1:8080",
    "TokenFile": "",
    "CaFile": "",
    "TimeoutSeconds": 10,
    "Offer": {},
    "Hours": [],
    "MegabytesPerSecond": 0,
    "Roles": {"*": "admin", "anonymous": "viewer"},
    "MoreNodes": [],
    "SiteScript": "",
}
OFFER = {
    "Modalities": [],
    "BodyParts": [],
    "CallingAets": [],
    "Labels": [],
    "Metadata": {},
    "MinAgeDays": 0,
    "MaxAgeDays": 0,
}
NODE = {"Url": "", "TokenFile": "", "CaFile": ""}
ROLES = ("viewer", "data-manager", "admin")
_HOURS = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")


def read_settings(configuration):
    """The Fedpacs section of Orthanc's configuration (a dict) -> (settings, problems); wrong values give a problem."""
    section = configuration.get("Fedpacs", {})
    if not isinstance(section, dict):
        return {**DEFAULTS, "Offer": dict(OFFER)}, [
            "the section Fedpacs of Orthanc's configuration must be an object: write { ... }"
        ]
    settings, problems = _typed(section, DEFAULTS, "Fedpacs")
    settings["Offer"], wrong = _typed(settings["Offer"], OFFER, "Fedpacs.Offer")
    problems += wrong + _wrong_node(settings, "Fedpacs") + _wrong_values(settings)
    if not 1 <= settings["TimeoutSeconds"] <= 60:
        problems.append("Fedpacs.TimeoutSeconds must be between 1 and 60")
        settings["TimeoutSeconds"] = DEFAULTS["TimeoutSeconds"]
    settings["MoreNodes"], wrong = _more_nodes(settings["MoreNodes"])
    return settings, problems + wrong


def rules(settings, problems):
    """What a node that follows this Orthanc must know: GET /fedpacs/rules."""
    return {
        "problems": problems,
        "offer": settings["Offer"],
        "hours": settings["Hours"],
        "megabytes_per_second": settings["MegabytesPerSecond"],
    }


def role_of(settings, user):
    """The role of an Orthanc user at the node."""
    return settings["Roles"].get(user, settings["Roles"].get("*" if user != "anonymous" else "anonymous", "viewer"))


def _typed(section, defaults, name):
    settings, problems = dict(defaults), []
    for key, value in section.items():
        if key not in defaults:
            problems.append(f"{name}.{key} is not a setting: use {', '.join(defaults)}")
        elif not _like(value, defaults[key]):
            problems.append(f"{name}.{key} must look like {json.dumps(defaults[key])}")
        else:
            settings[key] = value
    return settings, problems


def _like(value, default):
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(default, int):
        return isinstance(value, (int, float)) and 0 <= value < 1e9
    return isinstance(value, type(default))


def _wrong_values(settings):
    problems, offer = [], settings["Offer"]
    texts = [(f"Fedpacs.Offer.{key}", value) for key, value in offer.items() if isinstance(value, list)]
    for name, values in [*texts, ("Fedpacs.Hours", settings["Hours"])]:
        if not all(isinstance(value, str) and value for value in values):
            problems.append(f'{name} must be a list of texts, like ["..."]')
    if not all(isinstance(v, str) for v in offer["Metadata"].values()):
        problems.append('Fedpacs.Offer.Metadata must be names and texts, like {"Consent": "yes"}')
    if offer["MaxAgeDays"] and offer["MinAgeDays"] > offer["MaxAgeDays"]:
        problems.append("Fedpacs.Offer.MinAgeDays is larger than MaxAgeDays, so no study would be offered")
    if not all(isinstance(hours, str) and _HOURS.fullmatch(hours) for hours in settings["Hours"]):
        problems.append('Fedpacs.Hours must be windows of local time, like ["19:00-06:00"]')
    if not all(role in ROLES for role in settings["Roles"].values()):
        problems.append(f'Fedpacs.Roles must give each user, or "*", one of {", ".join(ROLES)}')
        settings["Roles"] = {}  # nobody may more than look
    return problems


def _wrong_node(node, name):
    problems = []
    try:
        url = urllib.parse.urlsplit(node["Url"])
        scheme, host = url.scheme, url.hostname
        url.port  # noqa: B018 - raises for a port that is no number
    except ValueError:
        scheme, host = "", ""
    if scheme not in ("http", "https", "unix") or (scheme != "unix" and not host):
        problems.append(f"{name}.Url must start with http://, https:// or unix:///: the default is {DEFAULTS['Url']}")
    elif scheme == "http" and host not in ("127.0.0.1", "localhost", "::1"):
        problems.append(f"{name}.Url leaves this machine unprotected: use https://, or a node on 127.0.0.1")
    if not node["TokenFile"]:
        problems.append(f"{name}.TokenFile is not set: give a copy of the node's keys/api.token that Orthanc can read")
    return problems


def _more_nodes(listed):
    nodes, problems = [], []
    for number, section in enumerate(listed, 1):
        name = f"Fedpacs.MoreNodes ({number})"
        if not isinstance(section, dict):
            problems.append(f"{name} must be an object with Url and TokenFile")
            continue
        node, wrong = _typed(section, NODE, name)
        problems += wrong + _wrong_node(node, name)
        nodes.append(node)
    return nodes, problems
