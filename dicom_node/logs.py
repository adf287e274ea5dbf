"""Structured logs (structlog, JSON lines) in which no identified value can stand: only fields known to be safe pass."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

import structlog

# Fields a log line may carry as text. Numbers and booleans always pass; any other field's text is replaced by its length.
SAFE_TEXT = frozenset(
    {
        "event", "level", "timestamp", "process", "node", "ae_title", "calling_ae", "called_ae", "address", "reason", "state",
        "sop_class", "transfer_syntax", "modality", "project", "digest", "round", "site", "status", "command", "name", "error",
        "path", "url", "version", "kind", "queue", "patient", "study_uid", "sop_uid", "profile", "action", "what",
    }  # patient, study_uid, sop_uid: pseudonyms only; the processes left of the wall log row numbers instead
)  # fmt: skip


def only_safe_fields(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """structlog processor: text in an unknown field never reaches the log."""
    for key, value in event.items():
        if key not in SAFE_TEXT and not isinstance(value, (int, float, bool, type(None))):
            event[key] = f"<{len(str(value))} characters withheld>"
    return event


def _error_by_type(_: Any, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """An exception is logged by type and place: its text may quote the data it failed on."""
    info = event.pop("exc_info", None)
    if info:
        error = sys.exc_info()[1] if info is True else info[1] if isinstance(info, tuple) else info
        if isinstance(error, BaseException):
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
            event["error"] = f"{type(error).__name__} at {place}"
    return event


def configure(folder: Path, process: str, level: int = logging.INFO) -> None:
    """Send this process's structlog lines to `folder`/`process`.jsonl; other libraries only from ERROR up, by name alone."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = WatchedFileHandler(folder / f"{process}.jsonl", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger("fedpacs")
    ours.handlers[:] = [handler]
    ours.setLevel(level)
    ours.propagate = False
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _error_by_type,
            only_safe_fields,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=lambda *_: ours,
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    # pynetdicom, Flower and friends quote data in their messages; they do not get near our files.
    logging.getLogger().handlers[:] = [logging.NullHandler()]


def get_logger(**context: Any) -> Any:
    """A structlog logger with fields bound to it."""
    return structlog.get_logger().bind(**context)
