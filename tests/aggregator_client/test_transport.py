"""One contract for every transport, held against the one in this process and against Flower over TLS."""

from __future__ import annotations

import hashlib
import io
import re
import threading
import time
import zipfile
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from aggregator_client import transport
from aggregator_client.errors import SignatureError, UnreachableError
from aggregator_client.flower_site import FlowerLink
from tests.aggregator_client import wires


@pytest.fixture(params=["local", "flower"])
def wire(request, tmp_path):
    made = wires.LocalWire(tmp_path) if request.param == "local" else wires.FlowerWire(tmp_path)
    yield made
    made.close()


@pytest.fixture
def flower(tmp_path):
    made = wires.FlowerWire(tmp_path)
    yield made
    made.close()


def soon(seconds: float = 20) -> float:
    return time.monotonic() + seconds


def signed_in(wire, site):
    link = wire.link(site)
    assert link.next(0.01) is None
    return link


def delivery(link, seconds: float = 20):
    end = soon(seconds)
    while time.monotonic() < end:
        if (found := link.next(0.05)) is not None:
            return found
    raise AssertionError("no message came")


def test_each_site_gets_its_own_message_and_its_reply_comes_back(wire):
    for site in ("north", "south"):
        wire.enrol(site)
    wire.hub.start_run()
    payloads = {"north": bytes(range(256)) * 24_000, "south": b""}  # 6 MB crosses Flower's 5 MB pieces
    links = {site: signed_in(wire, site) for site in payloads}
    handles = [wire.hub.send(site, payload) for site, payload in payloads.items()]

    def answer(site):
        got = delivery(links[site])
        assert got.payload == payloads[site]
        links[site].reply(got, site.encode() + got.payload)

    threads = [threading.Thread(target=answer, args=(site,)) for site in links]
    for thread in threads:
        thread.start()
    replies = {handle.site: reply for handle, reply in wire.hub.collect(handles, soon())}
    for thread in threads:
        thread.join()
    assert replies == {site: site.encode() + payload for site, payload in payloads.items()}


def test_a_late_reply_is_left_out_and_still_comes_when_asked_again(wire):
    wire.enrol("north")
    wire.hub.start_run()
    link, handle = signed_in(wire, "north"), wire.hub.send("north", b"question")
    started = time.monotonic()
    assert list(wire.hub.collect([handle], soon(0.4))) == []
    assert 0.3 < time.monotonic() - started < 5
    link.reply(delivery(link), b"answer")
    assert list(wire.hub.collect([handle], soon())) == [(handle, b"answer")]


def test_a_site_killed_before_its_answer_gets_the_message_again(wire):
    wire.enrol("north")
    wire.hub.start_run()
    first, handle = signed_in(wire, "north"), wire.hub.send("north", b"question")
    assert delivery(first).payload == b"question"
    # it is simply abandoned, as by kill -9: nobody said good-bye
    second = wire.link("north")
    again = delivery(second)
    assert again.payload == b"question"
    second.reply(again, b"answer")
    assert list(wire.hub.collect([handle], soon())) == [(handle, b"answer")]
    assert second.next(0.1) is None


@pytest.mark.parametrize("call", ["PullMessages", "GetRun"])
def test_a_line_cut_while_a_message_is_fetched_loses_none(flower, monkeypatch, call):
    """The coordinator counts it as delivered; the site signs in again, upon which a round sends it again (test_rounds)."""
    flower.enrol("north")
    flower.hub.start_run()
    link = signed_in(flower, "north")
    flower.hub.send("north", b"question")
    sent, whole = time.time(), getattr(link._client, call)

    def cut(request):
        whole(request)
        monkeypatch.setattr(link._client, call, whole)
        raise httpx.ReadError("the line was cut")

    monkeypatch.setattr(link._client, call, cut)
    end = soon()
    while getattr(link._client, call) is cut:
        assert time.monotonic() < end
        try:
            assert link.next(0.05) is None
        except UnreachableError:
            assert call == "PullMessages"
    assert link.next(0.05) is None
    assert flower.hub.sites()[0].activated_at > sent
    flower.hub.send("north", b"question")
    assert delivery(link).payload == b"question"


def test_sites_are_named_and_known_to_be_there_or_not(wire):
    wire.enrol("north")
    wire.enrol("south")
    wire.enrol("south")
    wire.hub.start_run()
    before = time.time()
    wire.link("north").next(0.01)
    seen = {info.name: info for info in wire.hub.sites()}
    assert set(seen) == {"north", "south"}
    assert seen["north"].online and abs(seen["north"].activated_at - before) < 5
    assert not seen["south"].online and seen["south"].activated_at == 0


def test_a_message_to_a_site_that_is_away_fails_so_that_it_can_be_sent_again(wire):
    wire.enrol("north")
    wire.hub.start_run()
    handle = wire.hub.send("north", b"question")
    ((_, failure),) = wire.hub.collect([handle], soon())
    assert isinstance(failure, transport.Failure) and failure.retry
    link = signed_in(wire, "north")
    handle = wire.hub.send("north", b"question")
    link.reply(delivery(link), b"answer")
    assert list(wire.hub.collect([handle], soon())) == [(handle, b"answer")]


def test_a_new_run_voids_what_was_under_way(wire):
    wire.enrol("north")
    wire.hub.start_run()
    link = signed_in(wire, "north")
    wire.hub.send("north", b"old")
    wire.hub.start_run()
    handle = wire.hub.send("north", b"new")
    got = delivery(link)
    if got.payload == b"old":  # it may have been on its way already; its answer is for nobody
        link.reply(got, b"late")
        got = delivery(link)
    assert got.payload == b"new"
    link.reply(got, b"answer")
    assert list(wire.hub.collect([handle], soon())) == [(handle, b"answer")]


def test_only_the_fleet_interface_is_open_to_the_world(flower):
    with httpx.Client(verify=False) as client:
        base = f"https://{flower.address}"
        for path in (
            "/v1/control/start-run",
            "/v1/control/register-node",
            "/v1/runtime/acquire-task",
            "/docs",
            "/health",
        ):
            assert client.post(base + path).status_code == 404, path
        assert client.post(base + "/v1/fleet/pull-messages").status_code != 404
    assert httpx.post(f"http://{flower.hub._address}/v1/control/list-nodes").status_code == 404


def test_an_unregistered_key_is_refused_in_one_sentence(flower):
    flower.enrol("north")
    with pytest.raises(UnreachableError, match="does not let this node in"):
        flower.link("north", ec.generate_private_key(ec.SECP384R1())).next(0.05)


def test_a_node_with_a_wrong_clock_is_told_so_and_named_at_the_coordinator(flower, monkeypatch):
    flower.enrol("north")
    flower.hub.start_run()
    link = flower.link("north")
    assert link.next(0.01) is None and not flower.hub.sites()[0].trouble
    with monkeypatch.context() as patch:
        wrong = datetime.now(UTC) - timedelta(hours=1)
        patch.setattr("flwr.supernode.node_auth_http_interceptor.now", lambda: wrong)
        with pytest.raises(UnreachableError, match="does not accept this node's key or clock"):
            link.next(0.01)
        assert re.fullmatch(r"its clock is 36\d\d s behind the coordinator's; .*", flower.hub.sites()[0].trouble)
    assert link.next(0.01) is None and not flower.hub.sites()[0].trouble  # set right again


def test_another_authority_is_not_trusted(flower, tmp_path):
    flower.enrol("north")
    stranger = wires.self_signed(tmp_path / "stranger")
    link = FlowerLink(flower.address, stranger.authority.read_bytes(), flower.keys["north"], tmp_path / "north")
    with pytest.raises(SignatureError, match="certificate"):
        link.next(0.05)


def test_a_run_with_another_bundle_never_reaches_the_site(flower, monkeypatch):
    flower.enrol("north")
    buffer = io.BytesIO(transport.app_bundle())
    with zipfile.ZipFile(buffer, "a") as bundle:
        bundle.writestr("fedpacs/none.py", "app = print('code of the coordinator')")
    foreign = buffer.getvalue()
    monkeypatch.setattr("aggregator_client.coordinator.flower_hub.app_bundle", lambda: foreign)
    monkeypatch.setattr(
        "aggregator_client.coordinator.flower_hub.app_bundle_hash", lambda: hashlib.sha256(foreign).hexdigest()
    )
    flower.hub.start_run()
    link = signed_in(flower, "north")
    flower.hub.send("north", b"run this")
    end = soon(3)
    while time.monotonic() < end:
        assert link.next(0.1) is None
