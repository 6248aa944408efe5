"""A Python REPL for model code, in a process of its own that is confined, limited and replaceable.

``worker.py`` runs inside, ``client.py`` is the host's handle, ``isolation.py`` decides how the one is shut
off from the other. See docs/security.md for what is promised.
"""

from rlm_env.repl.client import ReplClient
from rlm_env.repl.config import (
    Answer,
    FunctionSpec,
    HostHandler,
    IsolationUnavailable,
    ReplConfig,
    ReplError,
    ReplFailure,
    ReplResult,
    ReplStartError,
)
from rlm_env.repl.handover import RESERVED

__all__ = [
    "RESERVED",
    "Answer",
    "FunctionSpec",
    "HostHandler",
    "IsolationUnavailable",
    "ReplClient",
    "ReplConfig",
    "ReplError",
    "ReplFailure",
    "ReplResult",
    "ReplStartError",
]
