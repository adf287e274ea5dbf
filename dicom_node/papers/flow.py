"""The data-flow diagram as SVG: what stays left of the wall, what crosses it, what leaves the hospital and to whom."""

from __future__ import annotations

from html import escape

from dicom_node.papers.facts import Facts

_WIDTH, _HEIGHT, _BOX, _GAP = 1180, 470, 190, 44


def drawing(facts: Facts) -> str:
    """One SVG document; text only from the configuration and the approved projects."""
    config = facts.config
    sources = ["modalities and PACS (DICOM)"] + [f"Orthanc {one.url}" for one in config.orthanc.sources]
    at_rest = {"none": "not encrypted by configuration", "dm-crypt": "on dm-crypt", "attested": "encryption attested"}
    boxes = [
        ("Sources", sources),
        (
            "Spool, quarantine",
            [
                "IDENTIFIED",
                f"erased after {config.storage.keep_identified_hours:g} h",
                at_rest[config.storage.encryption],
            ],
        ),
        ("De-identification", [f"profile {facts.profile.name}", f"PS3.15 {facts.profile.edition}"]),
        ("Dataset, catalogue", ["pseudonyms, new UIDs", f"{sum(facts.studies.values())} studies"]),
        ("Training", ["on this machine", "no code from outside"]),
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="13">',
        "<title>Data flow of the fedpacs node</title>",
        (
            '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            '<path d="M0 0L8 4L0 8z"/></marker></defs>'
        ),
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<rect x="10" y="34" width="{_WIDTH - 20}" height="250" fill="#f4f7fa" stroke="#567"/>',
        f'<text x="20" y="26" font-weight="bold">Hospital: node {escape(config.node.name)}</text>',
    ]
    for index, (title, lines) in enumerate(boxes):
        x = 24 + index * (_BOX + _GAP)
        parts.append(_box(x, 70, title, lines, "#fde9e7" if index in (0, 1) else "#e8f3e8" if index > 2 else "#fff6d8"))
        if index:
            parts.append(_arrow(x - _GAP + 4, 120, x - 4, 120))
    wall = 24 + 2 * (_BOX + _GAP) + _BOX / 2
    parts.append(
        f'<line x1="{wall}" y1="190" x2="{wall}" y2="280" stroke="#a00" stroke-dasharray="6 4" stroke-width="2"/>'
    )
    parts.append(
        f'<text x="{wall - 8}" y="262" text-anchor="end">identified</text><text x="{wall + 8}" y="262">de-identified</text>'
    )
    parts.append(_box(24 + _BOX + _GAP, 205, "Vault", ["AES-256-GCM, always"], "#fde9e7", 50))
    last = 24 + 4 * (_BOX + _GAP) + _BOX / 2
    receivers = [(one.coordinator, f"{one.name} {one.version}: {one.mode}") for one in facts.approved]
    if not receivers:
        parts.append(
            f'<text x="{_WIDTH - 24}" y="330" text-anchor="end">Nothing leaves: no project is approved.</text>'
        )
    for index, (who, what) in enumerate(receivers[:4]):
        x = _WIDTH - 40 - _BOX - index * (_BOX + _GAP)
        parts.append(_arrow(last, 172, x + _BOX / 2, 336))
        parts.append(_box(x, 340, who, [what, "signed, sealed, audited first"], "#e7eefc"))
    if len(receivers) > 4:
        parts.append(f'<text x="24" y="450">and {len(receivers) - 4} more: see the Article 30 record.</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _box(x: float, y: float, title: str, lines: list[str], fill: str, height: int = 100) -> str:
    text = [f'<text x="{x + 8}" y="{y + 20}" font-weight="bold">{escape(_short(title))}</text>']
    text += [
        f'<text x="{x + 8}" y="{y + 40 + 18 * row}" font-size="11">{escape(_short(line))}</text>'
        for row, line in enumerate(lines[:4])
    ]
    return f'<rect x="{x}" y="{y}" width="{_BOX}" height="{height}" rx="6" fill="{fill}" stroke="#567"/>' + "".join(
        text
    )


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="black" marker-end="url(#a)"/>'


def _short(text: str) -> str:
    return text if len(text) <= 30 else text[:29] + "…"
