"""Runs one trainer job at a time in a process of its own, forked from a host that keeps the libraries in memory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from dicom_node.supervise import start_child

_START_SECONDS = 120.0  # a cold disk reads the libraries for a while


class TrainerProcess:
    """The trainer of one site. Close it to end the host."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._host: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._lock = threading.Lock()

    def warm(self) -> None:
        """Start the host, so that its libraries are there when the first job comes. Returns at once."""
        if self._host is None or self._host.poll() is not None:
            self._drop()
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs, self._errors() as errors:
                argv = [sys.executable, "-m", "aggregator_client.trainer_host"]
                self._host = start_child(argv, stdin=theirs, stdout=subprocess.DEVNULL, stderr=errors)
            self._link = ours

    def run(
        self, spec: Path, seconds: float, listen: Callable[[bytes], None], env: Mapping[str, str] | None = None
    ) -> int | None:
        """Do the job; each line it says goes to `listen`. Returns its exit code (minus the signal that ended it).

        `env` is added to its environment (the GPUs it may see).

        None when it took longer than `seconds` and was ended.
        """
        self.warm()
        assert self._link is not None
        end = time.monotonic() + seconds
        reading, writing = os.pipe()
        with open(reading, "rb") as said:
            try:
                with self._errors() as errors:
                    request = json.dumps({"job": str(spec), "env": dict(env or {})}).encode()
                    socket.send_fds(self._link, [request], [writing, errors.fileno()])
            except OSError:
                return self._lost()
            finally:
                os.close(writing)
            timer = threading.Timer(max(0.0, seconds), self._kill)
            timer.daemon = True
            timer.start()
            try:
                for line in said:
                    listen(line)
            except BaseException:
                self._drop()
                raise
            finally:
                timer.cancel()
        code = self._answer()
        return None if code != 0 and time.monotonic() >= end else code

    def close(self) -> None:
        """End the host and the job it may be doing."""
        self._drop()

    def _answer(self) -> int:
        assert self._link is not None
        try:
            self._link.settimeout(_START_SECONDS)
            answer = self._link.recv(4096)
        except OSError:
            return self._lost()
        return int(json.loads(answer)["exit"]) if answer else self._lost()

    def _lost(self) -> int:
        """The host was killed; the job died with it. The next job gets a new one."""
        self._drop()
        return -9

    def _kill(self) -> None:
        with self._lock:
            if self._link is not None:
                self._link.sendall(b'{"kill": true}')

    def _drop(self) -> None:
        with self._lock:
            if self._link is not None:
                self._link.close()
                self._link = None
        if self._host is not None:
            try:
                self._host.wait(10)
            except subprocess.TimeoutExpired:
                self._host.kill()
                self._host.wait()
            self._host = None

    def _errors(self) -> BinaryIO:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        return self._log.open("ab")
