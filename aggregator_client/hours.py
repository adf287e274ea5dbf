"""When a hospital allows training: the hours of day in node.toml's `[federation] hours`, in the node's own time zone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, time
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from aggregator_client.errors import SettingsError
from dicom_node.config import NodeConfig


def allowed(config: NodeConfig, now: datetime | None = None) -> bool:
    """Whether training may run now. An empty list allows any time. Raises SettingsError for hours that cannot be read."""
    hours = config.federation.hours
    if not hours:
        return True
    try:
        zone = ZoneInfo(config.node.timezone)
    except (ZoneInfoNotFoundError, ValueError):
        raise SettingsError(
            f"node.toml: node.timezone {config.node.timezone!r} is unknown here; use a name such as 'Europe/Amsterdam'."
        ) from None
    clock = (now or datetime.now(zone)).astimezone(zone).time()
    return any(_within(clock, *span) for span in _spans(hours))


def closed(config: NodeConfig, site: str) -> str:
    """The sentence that tells a coordinator when this site trains."""
    told = ", ".join(config.federation.hours)
    return f"{site} trains only at {told} ({config.node.timezone}): ask again then."


def _within(clock: time, start: time, end: time) -> bool:
    """A span that ends before it starts goes over midnight; one that ends when it starts is the whole day."""
    if start < end:
        return start <= clock < end
    return clock >= start or clock < end


def _spans(hours: Sequence[str]) -> list[tuple[time, time]]:
    spans = []
    for text in hours:
        try:
            start, end = (time.fromisoformat(part.strip()) for part in text.split("-"))
        except ValueError:
            raise SettingsError(
                f'node.toml: federation.hours holds {text!r}, which is no span of the day; write it as "19:00-06:00".'
            ) from None
        spans.append((start, end))
    return spans
