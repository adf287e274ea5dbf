"""Renders one page of the dashboard with what every page shows."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response


async def render(app: FastAPI, request: Request, template: str, **values: Any) -> Response:
    """A page of the dashboard."""
    common = {
        "up": "../" * (request.url.path.count("/") - 1),
        "coordinator": app.state.config.name,
        "caller": request.state.caller,
        "here": template.removesuffix(".html"),
        "seen": await app.state.fingerprint(),
        "ago": ago,
    }
    page: Response = app.state.templates.TemplateResponse(request, template, {**common, **values})
    return page


def ago(at: float) -> str:
    """How long ago that was, coarsely: the page is not drawn anew for every second."""
    seconds = time.time() - at
    if not at:
        return "never"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now"
