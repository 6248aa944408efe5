"""`python -m training.serve MODEL`: the policy server by itself, for training and evaluation by URL.

The same server, with the same flags, as a training run starts for itself; see `training.server`.
"""

import signal
import sys
import time
from pathlib import Path

from pydantic import Field
from pydantic_config import cli

from training.server import VLLMConfig, VLLMServer, VLLMServerError


class ServeConfig(VLLMConfig):
    """A server to start; `url` makes no sense here."""

    name: str | None = None
    """Name in requests; None is the last part of the model's path."""

    port: int | None = Field(8000, ge=1, le=65535)
    """Port to listen on; None takes a free one."""

    output_dir: Path = Path("outputs/serve")
    """Where the log goes."""


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM; 1 when the server does not start or dies."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0].startswith("-"):
        print(
            "usage: python -m training.serve MODEL [--name NAME] [--port PORT] [--FIELD VALUE]",
            file=sys.stderr,
        )
        return 2
    model = argv[0]
    config = cli(ServeConfig, args=argv[1:])
    if config.url is not None:
        print("--url is for using a running server, not for starting one", file=sys.stderr)
        return 2
    name = config.name or Path(model).name

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt  # also out of the wait for a start

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        with VLLMServer(config, model=model, served_model=name, output_dir=config.output_dir) as server:
            print(f"{name} at {server.url} (log: {server.log_file})", flush=True)
            while True:
                time.sleep(1)
                server.watch()
    except KeyboardInterrupt:
        return 0
    except VLLMServerError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
