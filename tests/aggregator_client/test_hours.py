"""Training only inside the hours the hospital allows, in its own time zone, also over midnight."""

from __future__ import annotations

from datetime import datetime

import pytest

from aggregator_client import hours
from aggregator_client.errors import SettingsError
from dicom_node.config import load_config
from dicom_node.setup import write_default_config


@pytest.fixture
def config(tmp_path):
    def make(spans, zone="UTC"):
        file = write_default_config(tmp_path, ae_title="TEST", name="North")
        text = (
            file.read_text()
            .replace("hours = []", f"hours = {spans}")
            .replace('timezone = "UTC"', f'timezone = "{zone}"')
        )
        file.write_text(text)
        return load_config(file)

    return make


def at(text):
    return datetime.fromisoformat(f"2026-01-15T{text}+00:00")


def test_hours_over_midnight_and_within_a_day(config):
    night = config(["19:00-06:00", "12:00-13:00"])
    wanted = {"18:59": False, "19:00": True, "23:59": True, "00:00": True, "05:59": True, "06:00": False, "12:30": True}
    assert {clock: hours.allowed(night, at(clock)) for clock in wanted} == wanted


def test_the_node_s_own_time_zone_counts(config):
    tokyo = config(["09:00-17:00"], "Asia/Tokyo")  # nine hours ahead of UTC
    assert hours.allowed(tokyo, at("00:30")) and not hours.allowed(tokyo, at("09:30"))


def test_no_hours_mean_any_time(config):
    assert hours.allowed(config([]), at("03:00"))


@pytest.mark.parametrize(
    ("spans", "zone"), [(["night"], "UTC"), (["25:00-06:00"], "UTC"), (["19:00-06:00"], "Mars/Base")]
)
def test_what_cannot_be_read_is_said_and_never_allows_training(config, spans, zone):
    with pytest.raises(SettingsError, match=r"node.toml: (federation.hours|node.timezone)"):
        hours.allowed(config(spans, zone), at("03:00"))
