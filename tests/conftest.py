"""What holds for every test: Ctrl-C reaches the processes that tests start, also where the tests run in a shell's background."""

from __future__ import annotations

import signal

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a background job ignores SIGINT, and its children would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
