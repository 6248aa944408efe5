"""The REPL's settings, reached as ``harness.repl.*``, and the values that cross the client's interface."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator
from pydantic_config import BaseConfig

Isolation = Literal["auto", "bwrap", "namespaces", "none"]


class ReplConfig(BaseConfig):
    """How the REPL process is started, confined and limited. ``None`` lifts a limit."""

    isolation: Isolation = "auto"
    """How model code is confined in the ``subprocess`` runtime. ``auto``: bubblewrap where it is installed,
    else Linux namespaces with Landlock; refuses to start where neither works. ``none``: no confinement, the
    code can do all that you can. Container and remote runtimes are the confinement themselves, and ignore
    this."""
    hide_tasksets: bool = True
    """Keep the packages of tasksets, which may hold reference answers or what makes them, out of the Python
    that model code sees (in ``bwrap`` and ``namespaces``). Off, REPL code can import and read them."""
    python: str | None = None
    """Interpreter (>= 3.8) that runs model code, with the packages installed for it. Unset: the one that
    runs the harness, in the ``subprocess`` runtime; ``python3`` elsewhere."""
    call_seconds: float = Field(120.0, gt=0)
    """Time limit of one call, in seconds. Time in which a request to the host (a sub-LLM, a tool) is being
    answered does not count."""
    interrupt_grace_seconds: float = Field(3.0, gt=0)
    """How long code may go on after it was interrupted at its time limit, before its process is killed."""
    output_chars: int = Field(8192, ge=64)
    """Characters of output shown of one call: the first three quarters from its beginning, the last
    quarter from its end. No more than this is ever held by the host, whatever is printed."""
    answer_chars: int = Field(1_000_000, ge=1)
    """Longest ``answer["content"]``, in characters; longer ones are cut and the model is told."""
    memory_mb: int | None = Field(4096, ge=256)
    """Address space of each REPL process, and resident memory of all processes of one REPL together."""
    cpu_seconds: int | None = Field(3600, ge=1)
    """CPU time of a REPL process over its whole life."""
    processes: int | None = Field(64, ge=4)
    """Processes and threads of one REPL."""
    open_files: int | None = Field(256, ge=32)
    """Open descriptors of each REPL process."""
    scratch_mb: int = Field(512, ge=1)
    """Size of the private scratch directory (memory-backed, in isolation), and of any one file."""
    frame_mb: int = Field(32, ge=1)
    """Largest message from the REPL process to the host, such as the prompts of one ``llm_batch``."""
    max_pending: int = Field(64, ge=1)
    """Requests of one REPL that the host answers at the same time; further ones wait unread."""
    max_restarts: int = Field(5, ge=0)
    """Restarts of the REPL process (after a crash, or code that would not stop) before the episode ends."""
    start_seconds: float = Field(60.0, gt=0)
    """Time limit for starting a REPL process and handing it the context."""

    @model_validator(mode="after")
    def _frame_holds_an_answer(self) -> ReplConfig:
        # Escaped JSON takes up to 12 bytes a character.
        if self.frame_bytes < 12 * self.answer_chars + (1 << 20):
            raise ValueError(
                f"frame_mb={self.frame_mb} cannot carry an answer of answer_chars={self.answer_chars:,}: "
                f"raise frame_mb to {(12 * self.answer_chars >> 20) + 2} or lower answer_chars"
            )
        return self

    @property
    def frame_bytes(self) -> int:
        return self.frame_mb << 20


@dataclass(frozen=True)
class FunctionSpec:
    """A function that REPL code can call by name.

    ``source``: Python source that defines it, run in the REPL process; None sends each call to the host as
    ``("tool", {"name", "args", "kwargs"})``. ``parameters``: JSON schema of the arguments, for whoever
    describes or validates them; the REPL itself does not look at it.
    """

    name: str
    description: str = ""
    source: str | None = None
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True)
class Answer:
    """The model's answer variable as last seen by the host."""

    content: str = ""
    ready: bool = False


@dataclass(frozen=True)
class ReplResult:
    """What one call did."""

    output: str
    """What the code printed and echoed, traceback included, cut to ``output_chars`` with a note."""
    total_chars: int
    """Characters of output before the cut."""
    truncated_chars: int
    """Characters that were cut; 0 = all is shown."""
    error: str | None
    """Name of the exception that ended the code, ``ReplDied`` when its process ended, or None."""
    seconds: float
    """Time the code took, without ``wait_seconds``."""
    wait_seconds: float
    """Time in which at least one request to the host was being answered."""
    timed_out: bool
    """The code was interrupted at its time limit."""
    restarted: bool
    """The REPL process was replaced: all variables but the reserved ones are lost."""
    lost: tuple[str, ...]
    """Names of the variables lost with the restart (the first 200)."""
    restored: tuple[str, ...]
    """Reserved names that the code had overwritten or deleted, and that were put back."""
    answer: Answer
    """The answer variable after the call."""
    notes: tuple[str, ...] = ()
    """Further things the model should be told: an answer turned into text, why the process died, ..."""


HostHandler = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Answers one request of REPL code: ``(name, payload) -> reply``, JSON both ways. The payload is untrusted.
An exception is an infrastructure failure: it ends the call and is raised by ``ReplClient.run``."""


class ReplError(RuntimeError):
    """Base of what the REPL client raises."""


class ReplStartError(ReplError):
    """The REPL process could not be started: a fault of the set-up, not of the model."""


class IsolationUnavailable(ReplStartError):
    """The requested confinement does not work on this machine."""


class ReplFailure(ReplError):
    """The REPL process died more often than ``max_restarts`` allows."""

    def __init__(self, message: str, answer: Answer) -> None:
        super().__init__(message)
        self.answer = answer
        """The last known answer."""
