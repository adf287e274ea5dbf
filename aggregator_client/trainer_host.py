"""A process that holds the trainer's libraries in memory and forks one child per job: `python -m aggregator_client.trainer_host`.

Importing torch and MONAI costs seconds, which a federation of short rounds would pay in every round. A job still has a
process of its own, so its memory, its GPU and its crashes end with it. Standard input is a Unix socket (SOCK_SEQPACKET)
to the one that started this process (aggregator_client.trainer_process speaks the other end); one job at a time:

    → {"job": "spec.json", "env": {}}   with two descriptors beside it: the job's standard output and standard error
    ← {"exit": 0}               the exit code, or minus the signal that ended it
    → {"kill": true}            end the running job

It ends when that socket closes, when nothing was asked for IDLE_SECONDS, or with the one that started it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence

from dicom_node.supervise import die_with_parent

IDLE_SECONDS = 900.0
NICE = 5  # a node receives and de-identifies while it trains
_LIBRARIES = ("trainer.job", "monai.networks.nets", "sklearn.metrics")


def serve(link: socket.socket) -> None:
    """Answer jobs until the other end closes or is idle for too long."""
    while select.select([link], [], [], IDLE_SECONDS)[0]:
        data, descriptors, _, _ = socket.recv_fds(link, 65536, 2)
        if not data:
            return
        request = json.loads(data)
        if "job" in request:  # a kill that came too late has nothing to end
            code = _run(link, str(request["job"]), descriptors, request.get("env", {}))
            if code is None:
                return
            link.sendall(json.dumps({"exit": code}).encode() + b"\n")


def _run(link: socket.socket, spec: str, descriptors: Sequence[int], env: Mapping[str, str]) -> int | None:
    """The exit code of one job; None when the other end closed meanwhile, which ends the job."""
    host = os.getpid()
    child = os.fork()
    if child == 0:
        _child(host, spec, descriptors, env)
    for descriptor in descriptors:
        os.close(descriptor)
    handle = os.pidfd_open(child)
    try:
        while True:
            ready, _, _ = select.select([handle, link.fileno()], [], [])
            if handle in ready:
                return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            _end(child)
            if not link.recv(65536):
                os.waitpid(child, 0)
                return None
    finally:
        os.close(handle)


def _child(host: int, spec: str, descriptors: Sequence[int], env: Mapping[str, str]) -> None:
    """Become the job: own session, own streams, no way back."""
    code = 1
    try:
        die_with_parent(parent=host)
        os.setsid()
        os.nice(NICE)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in enumerate((nothing, *descriptors)):
            os.dup2(source, target)
            if source > 2:
                os.close(source)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.update(env)  # CUDA, which the host never touches, looks at it when it starts
        from trainer.job import main

        code = main([spec])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _end(child: int) -> None:
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # not yet a session of its own, or gone
        os.kill(child, signal.SIGKILL)


def main() -> int:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=0) as link:
        for library in _LIBRARIES:
            __import__(library)
        serve(link)
    return 0


if __name__ == "__main__":
    sys.exit(main())
