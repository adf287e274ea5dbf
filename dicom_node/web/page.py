"""Renders one page of the console with what every page shows."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from dicom_node.web.view import NodeView


def render(app: FastAPI, request: Request, template: str, code: int = 200, **values: Any) -> Response:
    """A page with what every page shows: the node's name, who is logged in, paused or not, the page's place in the menu."""
    view: NodeView = app.state.view
    common = {
        # the way to the console's root, relative, so that it holds behind any prefix
        "up": "../" * (request.url.path.count("/") - 1),
        "node": app.state.config.node.name,
        "here": template.removesuffix(".html"),
        "paused": view.paused(),
        "seen": view.fingerprint(),
        "caller": request.state.caller,
        "embedded": embedded(request),
    }
    page: Response = app.state.templates.TemplateResponse(request, template, {**common, **values}, status_code=code)
    return page


def embedded(request: Request) -> bool:
    """Whether the page is shown inside Orthanc."""
    return request.headers.get("x-fedpacs-via") == "orthanc"
