"""Runs a command and takes it down, with all it started, when its parent goes away. Standard library only.

    python process_guard.py PARENT STOP_SECONDS COMMAND...

The guard is the leader of a session of its own; the command and its descendants stay in that session's
process group. On SIGTERM or SIGINT, or once PARENT, the id of the process that started the guard, is not its
parent any more (also by SIGKILL, when nothing else could tell anybody), the group gets SIGTERM, and SIGKILL
after STOP_SECONDS. Exits with the command's status.

A watcher rather than PR_SET_PDEATHSIG alone, because that signal comes when the starting *thread* ends,
reaches one process and not its children, and exists on Linux only.
"""

import os
import signal
import subprocess
import sys
import time

POLL_SECONDS = 0.2


def main() -> int:
    # Told and not asked of the system: a parent that died before this line is not the parent any more.
    parent, stop_seconds, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    stopping = False

    def stop(signum: int, frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while True:
        status = child.poll()
        if status is not None:
            # Descendants may have outlived it.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.killpg(0, signal.SIGTERM)
            return status if status >= 0 else 128 - status
        if stopping or os.getppid() != parent:
            break
        time.sleep(POLL_SECONDS)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + stop_seconds
    while time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.05)
    os.killpg(0, signal.SIGKILL)  # whatever is left, this guard included
    return 0


if __name__ == "__main__":
    sys.exit(main())
