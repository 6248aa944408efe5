"""The harness's settings, reached as ``--env.agent.harness.*`` (TOML: ``[env.agent.harness]``)."""

from __future__ import annotations

from typing import Annotated, Literal

import verifiers.v1 as vf
from pydantic import Field, model_validator
from pydantic_config import BaseConfig

from rlm_env.limits import LimitsConfig
from rlm_env.repl import ReplConfig


class FunctionConfig(BaseConfig):
    """A function of yours that REPL code can call by name."""

    fn: str
    """Import path of the function, ``package.module:function``. Sync or async; arguments and result must
    be JSON values when it runs on the host."""
    name: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name in the REPL; unset takes the function's own."""
    where: Literal["host", "worker"] = "host"
    """``host``: the call crosses to the trainer's process and runs there, with all that this may reach.
    ``worker``: the function's source is defined in the REPL process and runs confined with the model's code
    (it must be self-contained: imports inside the body)."""
    seconds: float = Field(60.0, gt=0)
    """Time limit of one host call."""


class RetryConfig(BaseConfig):
    """Retries of a model call that failed in transport (429, 5xx, a cut connection)."""

    attempts: int = Field(5, ge=1)
    """Attempts in all, the first included. Each carries the same idempotency key, so that a reply which
    was made but lost is delivered again and not sampled twice."""
    initial_seconds: float = Field(0.5, ge=0)
    """Wait before the second attempt; doubled for each further one, with jitter."""
    max_seconds: float = Field(20.0, ge=0)
    """Longest wait between two attempts. A server's ``Retry-After`` is honoured up to this."""
    request_seconds: float | None = Field(None, gt=0)
    """Time limit of one attempt; unset waits as long as the episode lasts."""


class RLMHarnessConfig(vf.HarnessConfig):
    id: str = "rlm_env"
    scaffold: Literal["rlm", "llm"] = "rlm"
    """``rlm``: the model works in a REPL with sub-LLMs. ``llm``: the standard baseline on the same task: a
    chat loop with the task's tools given directly, nothing installed at run time."""
    code_channel: Literal["fence", "tool"] = "fence"
    """How code reaches the REPL: fenced blocks in the reply, or a ``python`` tool call."""
    system_prompt: str | None = None
    """Replaces the built-in system prompt of the root. ``{functions}``, ``{packages}``, ``{call_seconds}``,
    ``{output_chars}``, ``{max_turns}`` are filled in when present."""
    sub_system_prompt: str | None = None
    """Replaces the built-in system prompt of sub-LLMs."""
    observation_style: Literal["full", "terse"] = "full"
    """``full`` heads every observation with time and turn; ``terse`` gives the bare output plus warnings,
    for small models with short windows."""
    max_depth: int = Field(1, ge=0)
    """0: no sub-LLMs. 1: plain sub-LLMs. N > 1: REPL code can also start child RLMs (``rlm_query``,
    ``rlm_batch``), whose own children stop at depth N. Kept on the host."""
    tools_for: Literal["sub", "repl", "both"] = "sub"
    """Who gets the task's tools: sub-LLMs as function calls, REPL code as functions, or both."""
    sub_tool_turns: int = Field(5, ge=1)
    """Tool turns of a sub-LLM before it must answer."""
    tool_connections: int = Field(8, ge=1)
    """Connections to each tool server per episode; calls on one connection run one after another."""
    python_tool: bool = False
    """In the ``llm`` scaffold: give the model a ``python`` tool backed by the same REPL worker."""
    packages: list[str] = Field(default_factory=list)
    """Non-standard packages that the model is told it can import. Unset: those of numpy, scipy, sympy and
    pandas that the REPL's interpreter has."""
    functions: list[FunctionConfig] = Field(default_factory=list)
    """Functions of yours, callable from the REPL by name."""
    on_sub_error: Literal["raise", "marker"] = "raise"
    """What a failed sub-call is to REPL code: an exception that carries the partial results, or a falsy
    marker object in the result list. Never text that looks like a reply."""
    folding: bool = False
    """Give REPL code ``fold(n, note)``, which drops the ``n`` oldest turns from the root's context and
    puts ``note`` in their place. The data stays in the REPL."""
    limits: LimitsConfig = LimitsConfig()
    """Budgets of the episode."""
    repl: ReplConfig = ReplConfig()
    """The REPL process: time, output, memory, isolation."""
    retry: RetryConfig = RetryConfig()
    """Retries of model calls."""

    @model_validator(mode="after")
    def _check(self) -> RLMHarnessConfig:
        if self.scaffold == "llm" and self.functions:
            raise ValueError('functions belong to the REPL: set scaffold = "rlm", or drop functions')
        if self.python_tool and self.scaffold == "rlm":
            raise ValueError(
                'python_tool is for scaffold = "llm"; in the rlm scaffold use code_channel = "tool" to have '
                "code sent as tool calls"
            )
        return self


Messages = list[dict]
"""Chat messages as the chat-completions API spells them."""

Scope = Annotated[str, "request-id prefix of an RLM node: '' for the root, 'rlm.<k>.' repeated below it"]
