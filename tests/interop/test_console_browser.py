"""The console in a real browser over a node that has trained: decisions, examples, quarantine, opt-outs, and how it looks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from starlette.testclient import TestClient

from dicom_node.audit import AuditLog
from dicom_node.projects import Projects
from dicom_node.status import write_json
from dicom_node.web.app import create_app
from tests.dicom_node.console_world import IDENTITIES, World, served
from tests.interop.browser import ARTEFACTS, axe, browser, violations
from tests.interop.studies import planted

pytestmark = [pytest.mark.interop, pytest.mark.timeout(900)]

FOCUSED = "[document.activeElement.textContent.trim(), getComputedStyle(document.activeElement).outlineStyle]"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("console"))
    with served(made):
        yield made
    made.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as one:
        yield one


def enter(chromium: Any, world: World, role: str, **options: Any) -> Any:
    """A page of somebody who is logged in."""
    context = chromium.new_context(**{"viewport": {"width": 1400, "height": 1000}, **options})
    context.add_cookies([{"name": n, "value": v, "url": world.url} for n, v in world.session(role).items()])
    page = context.new_page()
    page.set_default_timeout(60_000)
    return page


def test_every_page_is_accessible_fits_a_telephone_and_asks_nobody_else(
    chromium: Any, world: World, tmp_path_factory: pytest.TempPathFactory
) -> None:
    script = axe(tmp_path_factory.getbasetemp() / "axe")
    for scheme, width in (("light", 1400), ("dark", 390)):
        page = enter(chromium, world, "admin", color_scheme=scheme, viewport={"width": width, "height": 900})
        asked: list[str] = []
        problems: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("console", lambda message, problems=problems: problems.append(message.text))
        for path in ["/login", *world.pages("admin")]:
            page.goto(world.url + path)
            assert violations(page, script) == [], (path, scheme)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
                f"{path} is wider than the screen"
            )
            assert page.locator("h1").count() == 1, path
        assert [url for url in asked if not url.startswith(world.url)] == []
        assert problems == []
        page.context.close()


def test_the_keyboard_reaches_everything_in_order(chromium: Any, world: World) -> None:
    page = enter(chromium, world, "admin")
    page.goto(world.url + "/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.goto(world.url + "/")
    visited = []
    for _ in range(40):
        page.keyboard.press("Tab")
        visited.append(page.evaluate(FOCUSED))
        if visited[-1][0] == "C-ECHO":
            break
    texts = [text for text, _ in visited]
    for text in ("Log out", "Home", "Studies", "Projects", "copy", "C-ECHO"):
        assert text in texts, texts
    assert texts.index("Home") < texts.index("Studies") < texts.index("C-ECHO")
    assert all(style != "none" for _, style in visited[1:]), "a focus ring everywhere"
    page.context.close()


def test_a_project_is_read_approved_and_withdrawn(chromium: Any, world: World) -> None:
    page = enter(chromium, world, "admin")
    page.goto(world.url + "/")
    page.get_by_role("link", name="Read it").click()
    assert "Find pneumothorax. <script>" in page.locator("#sheet").inner_text()
    assert page.locator("#patients").inner_text() == "45"
    assert "modality is not one of DX" in page.locator("#failures").inner_text()
    page.screenshot(path=ARTEFACTS / "console-project.png")
    page.get_by_role("button", name="Approve").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    assert page.locator("#project-state").inner_text() == "offered", "Cancel changes nothing"
    for verb, state in (("Approve", "approved"), ("Withdraw", "withdrawn")):
        page.get_by_role("button", name=verb, exact=True).click()
        page.get_by_label("Reason").fill(f"because of {verb}")
        page.get_by_role("dialog").get_by_role("button", name=verb).click()
        page.locator("#project-state", has_text=state).wait_for()
        page.get_by_text(f"by console:Ada: because of {verb}").first.wait_for()
    projects = Projects(world.config.storage.catalogue)
    record = projects.get(world.offered.digest)
    projects.close()
    assert record is not None and (record.state, record.decided_by) == ("withdrawn", "console:Ada")
    page.context.close()


def test_a_data_manager_sees_example_predictions_and_a_viewer_does_not(chromium: Any, world: World) -> None:
    page = enter(chromium, world, "data-manager")
    page.goto(world.url + "/pages/training")
    assert page.locator("svg.chart").count() == 2
    assert "too few to tell" in page.locator(".subgroups").first.inner_text(), "small cells are not told"
    page.get_by_role("button", name="Draw examples").click()
    page.locator(".examples img").first.wait_for(timeout=120_000)
    widths = page.locator(".examples img").evaluate_all(
        "all => Promise.all(all.map(i => i.decode().then(() => i.naturalWidth)))"
    )
    assert len(widths) == 4 and all(width >= 320 for width in widths)
    assert re.search(r"(normal|bacterial|viral) \d+%", page.locator(".examples").inner_text())
    page.screenshot(path=ARTEFACTS / "console-training.png", full_page=True)
    picture = page.locator(".examples img").first.evaluate("one => one.src")
    viewer = enter(chromium, world, "viewer")
    viewer.goto(world.url + "/pages/training")
    assert viewer.locator(".examples").count() == 0
    assert viewer.request.get(picture).status == 403
    (record,) = AuditLog(world.config.storage.audit).records("examples.drawn")
    assert record.facts["by"] == "console:Dan"
    page.context.close()
    viewer.context.close()


def test_training_shows_itself_as_it_goes_on_without_a_reload(chromium: Any, world: World) -> None:
    import os

    page = enter(chromium, world, "viewer")
    page.goto(world.url + "/pages/training")
    page.evaluate("window.kept = true")
    job = {
        "pid": os.getpid(), "state": "working", "project": world.digest, "name": "patterns", "round": 2, "rounds": 3,
        "kind": "train", "started_at": 0.0, "step": 10, "steps": 40, "curve": [[5, 1.0], [10, 0.8]],
    }  # fmt: skip
    file = world.config.storage.run / "training.json"
    try:
        write_json(file, job)
        page.get_by_text("step 10 of 40").wait_for()
        write_json(file, {**job, "step": 20, "curve": [*job["curve"], [20, 0.5]], "drift": "The images have moved."})  # type: ignore[misc]
        page.get_by_text("step 20 of 40").wait_for()
        page.get_by_text("The images have moved.").wait_for()
        assert page.evaluate("window.kept"), "the page was not loaded again"
        page.screenshot(path=ARTEFACTS / "console-training-live.png")
    finally:
        file.unlink()
    page.get_by_text("No round is being trained here now").wait_for()
    page.context.close()


def test_quarantine_is_released_and_a_patient_opts_out(chromium: Any, world: World) -> None:
    page = enter(chromium, world, "data-manager")
    page.goto(world.url + "/pages/quarantine")
    assert page.get_by_role("button", name=re.compile("Purge")).count() == 0
    page.screenshot(path=ARTEFACTS / "console-quarantine.png")
    page.get_by_role("button", name=re.compile("Release number")).click()
    page.get_by_label("Reason").fill("looked at it")
    page.get_by_role("dialog").get_by_role("button", name="Release").click()
    page.wait_for_load_state()
    world.bench.deid.quarantine = set()
    world.bench.run()
    page.locator("#nothing-set-aside").wait_for()
    page.goto(world.url + "/pages/optouts")
    page.get_by_label("Patient ID, as the PACS shows it").fill(planted(1).patient_id)
    page.get_by_role("button", name="Exclude").click()
    page.get_by_label("Reason").fill("asked for it")
    page.get_by_role("dialog").get_by_role("button", name="Exclude").click()
    page.get_by_text("2 opted out").wait_for()
    assert planted(1).patient_id not in page.content()
    page.get_by_label("Patient ID of somebody").fill(planted(1).patient_id)
    page.get_by_role("button", name="Take back").click()
    page.get_by_label("Reason").fill("changed their mind")
    page.get_by_role("dialog").get_by_role("button", name="Take back").click()
    page.get_by_text("1 opted out").wait_for()
    page.context.close()


def test_the_pictures_of_the_documentation(chromium: Any, world: World) -> None:
    page = enter(chromium, world, "admin")
    for name, path in {
        "home": "/",
        "studies": "/pages/studies",
        "left": "/pages/left",
        "projects": "/pages/projects",
    }.items():
        page.goto(world.url + path)
        page.screenshot(path=ARTEFACTS / f"console-{name}.png")
    dark = enter(chromium, world, "admin", color_scheme="dark", viewport={"width": 390, "height": 844})
    dark.goto(world.url + "/")
    dark.screenshot(path=ARTEFACTS / "console-dark.png")
    for one in (page, dark):
        assert not [t for i in IDENTITIES for t in planted(i).tokens() if t in one.content()]
        one.context.close()


def test_no_page_that_a_viewer_can_open_holds_an_identified_value(world: World) -> None:
    """Walks every link, picture and described address from the home page, as a viewer."""
    secrets = [token for number in IDENTITIES for token in planted(number).tokens()]
    assert len(secrets) > 20
    with TestClient(create_app(world.config), base_url=world.url, follow_redirects=False) as client:
        client.cookies.update(world.session("viewer"))
        waiting, seen = ["/", "/openapi.json", "/nowhere", *_described(client), *world.pages("admin")], set[str]()
        while waiting:
            path = waiting.pop()
            if path in seen:
                continue
            seen.add(path)
            answer = client.get(path)
            assert answer.status_code < 500, path
            found = [token for token in secrets if token in answer.text or token in str(answer.headers)]
            assert found == [], (path, found)
            if "text/html" in answer.headers.get("content-type", ""):
                links = re.findall(r'(?:href|src|action)="([^"#]+)"', answer.text)
                waiting += [urljoin(path, unescape(link)) for link in links if not urlsplit(link).netloc]
    pages = {urlsplit(path).path for path in seen}
    assert {"/pages/studies", "/pages/projects", "/pages/training", "/pages/left", "/status", "/metrics"} <= pages
    assert sum(path.startswith("/pages/studies/") for path in pages) > 40


def _described(client: TestClient) -> list[str]:
    """Every address of the REST interface that can be read."""
    found = client.get("/openapi.json").json()["paths"]
    return [path for path, methods in found.items() if "get" in methods and "{" not in path]


def test_a_planted_identity_would_be_found(world: World) -> None:
    """The walk above can fail: a data manager's look over the wall shows what it seeks."""
    with TestClient(create_app(world.config), base_url=world.url) as client:
        client.cookies.update(world.session("data-manager"))
        (path,) = [path for path in world.pages("data-manager") if path.endswith("?instance=0")]
        assert planted(1).patient_id in client.get(path).text
