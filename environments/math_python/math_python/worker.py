"""The process that compares answers, one request a line. Run as a file, so that it imports math-verify only.

It is meant to be killed: parsing or simplifying what a model wrote can take for ever or all memory. Each
request has a budget of CPU seconds, kept by an interval timer whose signal ends the process; the host sees
the process die and counts a timeout. The signal is the operating system's, not a Python handler, so that it
also ends a loop inside one long C call, and it works when the host is gone.

A line in: {"gold": latex, "reply": latex, "seconds": CPU seconds}. A line out: {"verdict": "equal" |
"different" | "unparsed" | "gold_unparsed"}. Before the first request: {"ready": true}.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any


def compare(gold: str, reply: str) -> str:
    """The verdict on two LaTeX answers (without `\\boxed`)."""
    from math_verify import parse, verify

    # Both are boxed again, since math-verify gives a box priority over everything around it.
    gold_parsed = parse(f"\\boxed{{{gold}}}", parsing_timeout=None)
    if not gold_parsed:
        return "gold_unparsed"
    reply_parsed = parse(f"\\boxed{{{reply}}}", parsing_timeout=None)
    if not reply_parsed:
        return "unparsed"
    return "equal" if verify(gold_parsed, reply_parsed, timeout_seconds=None) else "different"


def main() -> None:
    memory_bytes = int(sys.argv[1])
    # Answers go out on a private copy of stdout: what libraries print must not mix with them.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the host's business
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))

    import logging

    logging.disable(logging.CRITICAL)  # math-verify warns that its own timeouts are off: they are, on purpose
    sys.setrecursionlimit(3000)
    compare("1", "1")  # imports, and compiles the grammar, before the first budget runs

    def send(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    send({"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_VIRTUAL, request["seconds"])
        try:
            verdict = compare(request["gold"], request["reply"])
        except (MemoryError, RecursionError):
            verdict = "too_big"
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        send({"verdict": verdict})


if __name__ == "__main__":
    main()
