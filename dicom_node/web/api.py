"""What the REST interfaces of the node and of the coordinator have in common: their problem answers, and reading a JSON body."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException


class Problem(BaseModel):
    """Every answer that is no success."""

    error: str = Field(description="One sentence: what is wrong, where, and how to mend it.")


class Reason(BaseModel):
    model_config = ConfigDict(extra="forbid")
    reason: str = Field(default="", max_length=500, description="Why, for the audit log.")


_WHEN = {
    400: "A value is wrong, or what was asked for does not exist.",
    401: "No token, or none that is known.",
    403: "The caller's role or the token's scopes do not reach so far, or the change comes from a foreign page.",
    409: "Refused as things stand.",
    413: "The body is larger than 64 KiB, or does not say how large it is.",
    421: "The host name is none of this console's.",
    422: "The request is not of the described form.",
    502: "Somebody else (a peer, Orthanc) did not answer.",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": words} for status, words in _WHEN.items()
}


def add_problems(app: FastAPI) -> None:
    """Answer what the framework itself refuses as a Problem too."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        # where and what, never the value: it may be a Patient ID
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"error": f"{place}: {first['msg']}"}, status_code=422)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, status_code=error.status_code, headers=error.headers)
