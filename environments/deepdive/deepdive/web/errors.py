"""The one exception of the tools.

Invariant: whatever goes wrong with a search or a page ends as a `ToolFailure`, whose message the model reads
and whose `kind` is counted. Any other exception out of this package is a bug.
"""

from __future__ import annotations

from typing import Literal, get_args

FailureKind = Literal[
    "bad_arguments",
    "bad_url",
    "refused_address",
    "refused_site",
    "dns",
    "connect",
    "timeout",
    "redirects",
    "http_status",
    "too_large",
    "content_type",
    "encoding",
    "unreadable",
    "empty_page",
    "bad_pattern",
    "pattern_timeout",
    "search",
    "internal",
]
FAILURE_KINDS: tuple[str, ...] = get_args(FailureKind)


class ToolFailure(Exception):
    """A tool call that did not work. `message` is written for the model: what happened, and what to try."""

    def __init__(self, kind: FailureKind, message: str, *, retry: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.retry = retry
        """Whether the same call may well work a moment later."""
