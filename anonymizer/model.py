"""What a de-identification gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

PixelStep = Callable[[bytes], tuple[bytes | None, str]]


class Action(NamedTuple):
    """What was done to an attribute (wherever it stood in the object) and by which rule; never its value."""

    tag: str
    keyword: str
    action: str
    rule: str


@dataclass
class Outcome:
    """The result for one object. ``parts`` joined are the Part 10 bytes; they may be views into the input buffer."""

    status: Literal["ok", "quarantined", "rejected"]
    reason: str = ""
    sop_instance_uid: str = ""
    study_instance_uid: str = ""
    patient: str = ""
    parts: list[bytes | memoryview] | None = None
    actions: list[Action] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    face: str = ""  # "head" or "maybe": the output shows a face until anonymizer.faces.series has seen its whole series

    @property
    def output(self) -> bytes | None:
        """The de-identified file, None unless the status is "ok"."""
        return None if self.parts is None or self.status != "ok" else b"".join(self.parts)
