# fedpacs plugin for Orthanc. Copyright (C) 2026 the fedpacs authors. SPDX-License-Identifier: GPL-3.0-or-later
"""Front door and show window of a fedpacs node inside Orthanc: routes under /fedpacs/, a page, a button, and hints.

Two lines in orthanc.json load it, one section sets it:

    "Plugins": ["/usr/share/orthanc/plugins/libOrthancPython.so"],
    "PythonScript": "/etc/orthanc/fedpacs/fedpacs_plugin.py",
    "Fedpacs": {"Url": "http://127.0.0.1:8080", "TokenFile": "/etc/orthanc/fedpacs/api.token"}

It moves no image. The node reads Orthanc's own /changes log and pulls what it wants; an event here only tells the node
to look now. So nothing is lost when Orthanc, the node or this plugin stops, and C-STORE is not slowed: the one callback
on Orthanc's side sets a flag. Nothing that goes wrong here stops Orthanc: wrong settings are one line in the log and on
the page. Standard library and `orthanc` only; fedpacs_settings.py and fedpacs_explorer.py stand beside it. Written to the 4.0
interface of orthanc-python; what newer ones changed is told apart when it is called.

A site that has a Python script already names it as SiteScript: its calls of orthanc.RegisterOnChangeCallback and
orthanc.ExtendOrthancExplorer, of which Orthanc keeps one each, are fanned out.
"""

import base64
import contextlib
import functools
import http.client
import json
import os
import queue
import re
import runpy
import signal
import socket
import ssl
import sys
import threading
import time
import urllib.parse

import orthanc

try:  # a script that raises at import stops Orthanc, and the PACS comes first
    from fedpacs_explorer import EXPLORER
    from fedpacs_settings import read_settings, role_of, rules

    BROKEN = None
except Exception as reason:  # noqa: BLE001 - main() logs it
    BROKEN = reason

VERSION = "0.2.0"
OPT_OUT = re.compile(r"/orthanc/studies/[0-9a-f-]{44}/(exclude|include)")
BODY_LIMIT = 64 * 1024  # the largest request this plugin passes on
HINT_LIMIT = 500  # more changed studies than this, and the node is told "look at everything"
WORKERS = 4

# What may be asked of the node through Orthanc: (method, path under /fedpacs/, path at the node). A path that is not
# here does not exist, so that an Orthanc user reaches no more of the node than this page needs.
ROUTES = [
    ("GET", r"page", "/"),
    ("GET", r"static/([a-z]+\.(?:css|js|svg))", "/static/{0}"),
    ("GET", r"status", "/status"),
    ("GET", r"projects", "/projects"),
    ("GET", r"studies/([0-9a-f-]{44})", "/orthanc/studies/{0}"),
    ("POST", r"studies/([0-9a-f-]{44})/(exclude|include)", "/orthanc/studies/{0}/{1}"),
    ("POST", r"projects/([0-9a-f]{64})/(approve|reject)", "/projects/{0}/{1}"),
    ("POST", r"(pause|resume)", "/{0}"),
]

# On each answer: nothing in caches or foreign frames, scripts and styles from our own files only.
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'self'",
}


def log(message):
    """One line in Orthanc's log; never a name, an id or a date of a patient."""
    try:
        orthanc.LogWarning("fedpacs: " + " ".join(str(message).split()))
    except Exception:  # noqa: BLE001 - the log itself must not be the reason that Orthanc stops
        pass


# -- talking to the node -----------------------------------------------------------------------------------------------


class NodeUnreachable(Exception):
    """The node did not answer, or may not be asked; the message is for the page."""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket (Url "unix:///run/fedpacs/api.sock")."""

    def __init__(self, path, timeout):
        super().__init__("localhost", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Node:
    """The fedpacs node: one short-lived connection a request, the token read from its file each time."""

    def __init__(self, settings, problems):
        self.settings, self.problems = settings, problems
        self.timeout = settings.get("TimeoutSeconds", 10)

    def ask(self, method, path, body=None, headers=None):
        """-> (status, content type, bytes). Raises NodeUnreachable with one sentence."""
        if self.problems:
            raise NodeUnreachable(self.problems[0])
        try:
            with open(self.settings["TokenFile"], encoding="ascii") as file:
                token = file.read().strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not a token"
            raise NodeUnreachable(
                f"Fedpacs.TokenFile {self.settings['TokenFile']}: {reason}; "
                "copy the node's keys/api.token there, readable by Orthanc's user"
            ) from None
        sent = {"Authorization": "Bearer " + token, "Content-Length": str(len(body or b"")), **(headers or {})}
        try:
            connection = self.connect()
            try:
                connection.request(method, path, body=body, headers=sent)
                answer = connection.getresponse()
                if answer.status == 401:  # not to be taken for Orthanc's own 401, which asks for a password
                    raise NodeUnreachable("the fedpacs node does not accept the token in Fedpacs.TokenFile")
                return answer.status, answer.getheader("Content-Type", "application/json"), answer.read()
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise NodeUnreachable(
                f"the fedpacs node does not answer at {self.settings['Url']} ({reason}); is `fedpacs node run` up?"
            ) from None

    def connect(self):
        url, timeout = urllib.parse.urlsplit(self.settings["Url"]), self.timeout
        if url.scheme == "unix":
            return UnixConnection(url.path, timeout)
        if url.scheme == "https":
            context = ssl.create_default_context(cafile=self.settings["CaFile"] or None)
            return http.client.HTTPSConnection(url.hostname, url.port, timeout=timeout, context=context)
        return http.client.HTTPConnection(url.hostname, url.port, timeout=timeout)


# -- own threads -------------------------------------------------------------------------------------------------------


class Pool:
    """A few threads with 8 MB stacks: Orthanc's HTTP threads have 100 KiB, too little for json or ssl."""

    def __init__(self, size):
        self.jobs = queue.Queue(maxsize=64)
        before = threading.stack_size(8 << 20)
        try:
            self.threads = [threading.Thread(target=self.work, daemon=True) for _ in range(size)]
            for thread in self.threads:
                thread.start()
        finally:
            threading.stack_size(before)

    def work(self):
        while True:
            job, box, done = self.jobs.get()
            if job is None:
                return
            try:
                box.append(job())
            except Exception as error:  # noqa: BLE001 - handed to the waiting request, which answers 500
                box.append(error)
            done.set()

    def stop(self):
        for _ in self.threads:
            with contextlib.suppress(queue.Full):
                self.jobs.put_nowait((None, None, None))

    def run(self, job, seconds):
        """The job's result, or NodeUnreachable when all threads are busy for longer than `seconds`."""
        box, done = [], threading.Event()
        try:
            self.jobs.put_nowait((job, box, done))
        except queue.Full:
            raise NodeUnreachable("too many requests wait for the fedpacs node") from None
        if not done.wait(seconds):
            raise NodeUnreachable(f"the fedpacs node took longer than {seconds} s")
        if isinstance(box[0], Exception):
            raise box[0]
        return box[0]


class Hints:
    """Tells the node that something changed in Orthanc; a hint that fails is dropped, for the node finds it anyway."""

    def __init__(self, nodes, pause=0.5):
        self.nodes, self.pause = nodes, pause
        self.wake, self.stop, self.lock = threading.Event(), threading.Event(), threading.Lock()
        self.studies, self.everything, self.reached = set(), True, {}
        self.thread = threading.Thread(target=self.work, daemon=True)

    def add(self, study):
        """Called on Orthanc's thread: sets a flag, does nothing else."""
        with self.lock:
            if len(self.studies) < HINT_LIMIT:
                self.studies.add(study)
            else:
                self.everything = True
        self.wake.set()

    def work(self):
        while not self.stop.is_set():
            self.wake.wait()
            self.wake.clear()
            if self.stop.wait(self.pause):  # studies come in bursts: one hint for all
                return
            with self.lock:
                offer = {"studies": sorted(self.studies), "everything": self.everything}
                self.studies, self.everything = set(), False
            for node in self.nodes:
                self.send(node, json.dumps(offer).encode())

    def send(self, node, body):
        try:
            status, _, _ = node.ask("POST", "/orthanc/offer", body, {"Content-Type": "application/json"})
            told = None if status == 200 else f"the fedpacs node refused a hint with HTTP status {status}"
        except NodeUnreachable as error:
            told = str(error)
        before = self.reached.get(node)
        if told != before:  # say it when it changes, not at each event
            log(told or "the fedpacs node answers again")
        self.reached[node] = told


# -- Orthanc's side ----------------------------------------------------------------------------------------------------


def user_of(headers):
    """The Orthanc user of a request, from its Basic header; Orthanc has checked the password before we are called."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return "anonymous"
    try:
        name = base64.b64decode(value).decode().partition(":")[0]
    except ValueError:
        return "anonymous"
    return re.sub(r"[^\w.@-]", "_", name)[:64] or "anonymous"


def foreign(headers):
    """Why a state-changing request is refused, or None: only our own page, in this Orthanc, may make one (CSRF)."""
    if headers.get("x-fedpacs") != "1":
        return "a change needs the header X-Fedpacs: 1"
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return "a change from another site is refused"
    origin = headers.get("origin")
    if origin and urllib.parse.urlsplit(origin).netloc != headers.get("host"):
        return "a change from another origin is refused"
    return None


class Plugin:
    """What is registered with Orthanc: one change callback, the routes, the Explorer extension."""

    def __init__(self, settings, problems):
        self.settings, self.problems = settings, problems
        self.node = Node(settings, problems)
        timeout = {"TimeoutSeconds": settings["TimeoutSeconds"]}
        self.nodes = [self.node, *(Node({**more, **timeout}, problems) for more in settings["MoreNodes"])]
        self.pool, self.hints = Pool(WORKERS), Hints(self.nodes)
        self.started, self.tables = time.time(), [(m, re.compile(p), target) for m, p, target in ROUTES]

    def on_change(self, change, level, resource):
        if change == orthanc.ChangeType.ORTHANC_STARTED:
            self.hints.thread.start()
            self.hints.wake.set()
        elif change == orthanc.ChangeType.ORTHANC_STOPPED:
            self.end()
        elif level == orthanc.ResourceType.STUDY and change in (
            orthanc.ChangeType.STABLE_STUDY,
            orthanc.ChangeType.DELETED,
        ):
            self.hints.add(resource)

    def end(self):
        """End our threads before Python is torn down under them."""
        self.hints.stop.set()
        self.hints.wake.set()
        self.pool.stop()
        deadline = time.monotonic() + 3
        for thread in (*self.pool.threads, self.hints.thread):
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def on_request(self, output, uri, **request):
        """Every request under /fedpacs/; answers JSON errors, never raises into Orthanc."""
        try:
            status, kind, body = self.answer(uri, request)
        except NodeUnreachable as error:
            status, kind, body = self.unreachable(uri, str(error))
        except Exception as error:  # noqa: BLE001 - a bug here is an answer 500, not the end of an Orthanc thread
            log(f"a request failed with {type(error).__name__}")
            status, kind, body = 500, "application/json", b'{"error": "internal error of the fedpacs plugin"}'
        send(output, status, kind, body)

    def answer(self, uri, request):
        path = uri[len("/fedpacs/") :] if uri.startswith("/fedpacs/") else "page"
        method, headers = request["method"], request.get("headers") or {}
        if path == "health" and method == "GET":
            return self.health()
        if path == "rules" and method == "GET":
            return 200, "application/json", json.dumps(rules(self.settings, self.problems)).encode()
        for wanted, pattern, target in self.tables:
            match = pattern.fullmatch(path)
            if match and wanted == method:
                return self.forward(method, target.format(*match.groups()), request, headers)
        allowed = sorted({wanted for wanted, pattern, _ in self.tables if pattern.fullmatch(path)})
        return (405, ",".join(allowed), b"") if allowed else error(404, "there is no such fedpacs route")

    def forward(self, method, target, request, headers):
        body, user = None, user_of(headers)
        sent = {"X-Fedpacs-User": user, "X-Fedpacs-Role": role_of(self.settings, user), "X-Fedpacs-Via": "orthanc"}
        if method == "POST":
            refusal = foreign(headers)
            if refusal:
                return error(403, refusal)
            body = request.get("body") or b""
            body = body.encode() if isinstance(body, str) else body
            if len(body) > BODY_LIMIT:
                return error(413, f"the request is larger than {BODY_LIMIT} bytes")
            sent["Content-Type"] = "application/json"
        elif request.get("get"):
            target += "?" + urllib.parse.urlencode(request["get"])
        if OPT_OUT.fullmatch(target):
            return self.ask_all(method, target, body, sent)
        return self.ask(method, target, body, sent)

    def ask_all(self, method, target, body, headers):
        """An opt-out holds at every node; one that did not take it is told, so that it is asked again."""
        answers = []
        for node in self.nodes:
            try:
                answers.append(
                    self.pool.run(functools.partial(node.ask, method, target, body, headers), node.timeout + 2)
                )
            except NodeUnreachable as unreachable:
                answers.append(error(503, str(unreachable)))
        return next((answer for answer in answers if answer[0] != 200), answers[0])

    def ask(self, method, target, body=None, headers=None):
        return self.pool.run(lambda: self.node.ask(method, target, body, headers), self.settings["TimeoutSeconds"] + 2)

    def health(self):
        report = {"plugin": VERSION, "uptime_s": round(time.time() - self.started), "problems": self.problems}
        told = [self.health_of(node) for node in self.nodes]
        report["node"] = told[0]
        if told[1:]:
            report["more_nodes"] = told[1:]
        well = not self.problems and not any("error" in one for one in told)
        return 200 if well else 503, "application/json", json.dumps(report).encode()

    def health_of(self, node):
        try:
            status, _, body = self.pool.run(functools.partial(node.ask, "GET", "/health"), node.timeout + 2)
            return json.loads(body) if status == 200 else {"error": f"HTTP status {status}"}
        except NodeUnreachable as unreachable:
            return {"error": str(unreachable)}

    def unreachable(self, uri, reason):
        if uri not in ("/fedpacs", "/fedpacs/page"):
            return error(503, reason)
        text = reason.replace("&", "&amp;").replace("<", "&lt;")
        page = (
            "<!doctype html><html lang=en><meta charset=utf-8><title>Federation</title><h1>Federation</h1>"
            f"<p id=unreachable>{text}</p><p>Orthanc goes on as usual. Nothing is lost: "
            "the node fetches what it missed when it is back.</p></html>"
        )
        return 503, "text/html; charset=utf-8", page.encode()


def error(status, sentence):
    return status, "application/json", json.dumps({"error": sentence}).encode()


def send(output, status, kind, body):
    """Hand the answer to Orthanc, whichever version of SendHttpStatus it has."""
    for name, value in HEADERS.items():
        output.SetHttpHeader(name, value)
    if status == 200:
        output.AnswerBuffer(body, kind)
        return
    if status == 405:  # Orthanc takes this status through a call of its own only
        output.SendMethodNotAllowed(kind)
        return
    output.SetHttpHeader("Content-Type", kind)
    try:
        output.SendHttpStatus(status, body.decode(), len(body))  # orthanc-python 4.x
    except TypeError:
        output.SendHttpStatus(status, body)  # later ones


def fan_out(name, combine):
    """Let a site's own script call orthanc.<name> after us: Orthanc keeps one value, `combine` makes it of all."""
    original, given = getattr(orthanc, name), []

    def register(value):
        given.append(value)
        if len(given) == 1 or name == "ExtendOrthancExplorer":  # a second OnChange registration raises; one is enough
            original(combine(given))

    setattr(orthanc, name, register)


def call_all(given):
    def on_change(change, level, resource):
        for callback in list(given):
            try:
                callback(change, level, resource)
            except Exception as problem:  # noqa: BLE001 - one script's mistake must not silence the others
                log(f"a change callback failed with {type(problem).__name__}")

    return on_change


def load_site_script(path):
    """The script that PythonScript named before us; Orthanc goes on without it when it fails."""
    try:
        sys.path.insert(0, os.path.dirname(path))  # noqa: PTH120 - what its own imports expect
        runpy.run_path(path, run_name="site_script")
    except Exception as problem:  # noqa: BLE001 - a script that raises would stop Orthanc
        log(f"Fedpacs.SiteScript {path} failed with {type(problem).__name__}")


def main():
    if BROKEN:
        raise BROKEN
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a node that hangs up must not end Orthanc
    settings, problems = read_settings(json.loads(orthanc.GetConfiguration()))
    if not settings["Enabled"]:
        log("switched off by Fedpacs.Enabled")
        return None
    if problems:
        log(f"{'; '.join(problems)}; Orthanc goes on without the federation")
    plugin = Plugin(settings, problems)
    fan_out("RegisterOnChangeCallback", call_all)
    fan_out("ExtendOrthancExplorer", "\n".join)
    orthanc.RegisterOnChangeCallback(plugin.on_change)
    # orthanc-python holds no reference of its own: without this one Orthanc 1.12.7 ends with SIGSEGV when it is stopped
    plugin.routes = plugin.on_request
    orthanc.RegisterRestCallback("/fedpacs", plugin.routes)
    orthanc.RegisterRestCallback("/fedpacs/(.*)", plugin.routes)
    orthanc.ExtendOrthancExplorer(EXPLORER)
    if settings["SiteScript"]:
        load_site_script(settings["SiteScript"])
    log(f"plugin {VERSION} is loaded, the node is expected at {settings['Url']}")
    return plugin


try:
    PLUGIN = main()
except Exception as problem:  # noqa: BLE001 - a script that raises at import stops Orthanc, and the PACS comes first
    PLUGIN = None
    log(f"not loaded ({type(problem).__name__}: {problem}); Orthanc goes on without it")
