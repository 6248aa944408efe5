"""``RLMHarness``: one episode of a Recursive Language Model, start to end, as a verifiers v1 harness.

The loop runs in the host's event loop; only the model's code runs elsewhere, in a REPL process that is
started through the runtime and speaks over its own stdio. Every model call goes to the interception
endpoint, so the trace is the record of what ran. Invariants:

* ``trace.root_reply`` is ``answer["content"]``, whatever ended the episode, so any taskset's rewards work.
* A limit ends the episode cleanly and is scored; an infrastructure failure raises, so that it is an error
  of the trace and never a reward of 0.
* When the episode ends, however it ends, no process of it is left.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import time
from typing import Any

import verifiers.v1 as vf
from verifiers.v1.clients import ModelContext
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.errors import ProviderError, SandboxError
from verifiers.v1.harness import HarnessSession
from verifiers.v1.runtimes import ProgramResult, Runtime
from verifiers.v1.semantic import SemanticEdge, SemanticEdgeSet
from verifiers.v1.task import TaskData
from verifiers.v1.trace import Trace
from verifiers.v1.types import Messages as VfMessages

from rlm_env import host_urls
from rlm_env.baseline import BaselineChat
from rlm_env.calls import ModelCalls, ModelFailure, SessionLease
from rlm_env.config import Messages, RLMHarnessConfig
from rlm_env.limits import LIMIT_REASONS, Ledger, StopReason
from rlm_env.loop import RLMNode
from rlm_env.metrics import METRIC_NAMES, Recorder
from rlm_env.repl import FunctionSpec, IsolationUnavailable, ReplClient, ReplStartError
from rlm_env.subcalls import Shared
from rlm_env.toolbox import Toolbox

logger = logging.getLogger(__name__)

_START_ATTEMPTS = 3
_SCIENTIFIC = ("numpy", "scipy", "sympy", "pandas")


class RLMHarness(vf.Harness[RLMHarnessConfig]):
    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_MCP = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = True
    NEEDS_CONTAINER = False

    async def setup(self, runtime: Runtime) -> None:
        host_urls.remember(runtime)

    async def session(
        self,
        ctx: ModelContext,
        trace: Trace,
        runtime: Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: TaskData,
        tool_interception_url: str | None = None,
    ) -> RLMSession:
        # They are for a program in the container; the loop runs out here.
        endpoint = host_urls.on_host(runtime, endpoint)
        mcp_urls = {name: host_urls.on_host(runtime, url) for name, url in mcp_urls.items()}
        return RLMSession(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data, tool_interception_url)

    async def launch(
        self,
        ctx: ModelContext,
        trace: Trace,
        runtime: Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: TaskData,
    ) -> ProgramResult:
        """One segment in a session of its own; verifiers itself goes through ``session``."""
        session = await self.session(ctx, trace, runtime, endpoint, secret, mcp_urls, data)
        try:
            return await session._run(None)
        finally:
            await session.close()


class RLMSession(HarnessSession):
    """One rollout. The REPL and its variables live across the turns of the user."""

    harness: RLMHarness

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._episode: Episode | None = None

    async def _run(self, messages: VfMessages | None) -> ProgramResult:
        if self._episode is None:
            self._episode = Episode(self)
            opening = messages
            await self._episode.open(opening)
        elif messages is not None:
            await self._episode.resume([message_to_wire(message) for message in messages])
        await self._episode.run()
        return ProgramResult(exit_code=0, stdout="", stderr="")

    async def close(self) -> None:
        if self._episode is not None:
            await self._episode.close()
        await super().close()


class Episode:
    """What one rollout holds while it runs: tools, budgets, records and the root."""

    def __init__(self, session: RLMSession) -> None:
        self.session = session
        self.config = session.harness.config
        self.trace = session.trace
        self.recorder = Recorder(self.config.scaffold)
        self.ledger = Ledger.root(self.config.limits)
        self.deadline: float | None = None
        self._lease: SessionLease | None = SessionLease.take()
        self.calls = ModelCalls(
            session=self._lease.session,
            endpoint=session.endpoint.rstrip("/"),
            secret=session.secret,
            model=session.ctx.model,
            retry=self.config.retry,
            trace=session.trace,
            parallel=asyncio.Semaphore(self.config.limits.max_parallel_sub_calls),
        )
        self.toolbox: Toolbox | None = None
        self.root: RLMNode | BaselineChat | None = None

    async def open(self, opening: VfMessages | None) -> None:
        session, config = self.session, self.config
        if config.limits.episode_seconds is not None:
            self.deadline = time.monotonic() + config.limits.episode_seconds
        self.toolbox = await Toolbox.open(config, session.mcp_urls)
        shared = Shared(config, self.calls, self.toolbox, self.recorder, {})
        system, prompt = session.harness.resolve_prompt(session.data)
        head: Messages
        if prompt is None:
            head = []
        elif isinstance(prompt, str):
            head = [{"role": "user", "content": prompt}]
        else:
            head = [message_to_wire(message) for message in prompt]
        head += [message_to_wire(message) for message in opening or []]
        if not head:
            raise ValueError("the task has no prompt and the user said nothing: there is nothing to answer")
        if config.scaffold == "llm":
            opener: Messages = [{"role": "system", "content": system}] if system else []
            self.root = BaselineChat(shared, self.ledger, [*opener, *head], self._start_baseline_repl)
        else:
            # The scaffold's system prompt comes first; system messages of the task follow it in one message.
            task_system = "\n\n".join(
                text
                for text in (system, *(m["content"] for m in head if m["role"] == "system"))
                if isinstance(text, str) and text
            )
            self.root = RLMNode(
                shared=shared,
                ledger=self.ledger,
                start_repl=self._start_repl,
                head=[message for message in head if message["role"] != "system"],
                packages=importable_packages(config, session.runtime),
                context=_task_value(self.trace, session.data, "context"),
                context_files=_files(_task_value(self.trace, session.data, "context_files")),
                task_system=task_system or None,
                deadline=self.deadline,
            )
        await self.root.open()

    async def resume(self, messages: Messages) -> None:
        assert self.root is not None
        await self.root.resume(messages)

    async def run(self) -> None:
        """One segment. Records the answer, the metrics and ``info["rlm"]`` however it ends."""
        assert self.root is not None
        reason = StopReason.ERROR
        left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
        try:
            try:
                async with asyncio.timeout(left) as clock:
                    reason = await self.root.run()
            except TimeoutError:
                if not clock.expired():
                    raise
                reason = StopReason.EPISODE_TIMEOUT
            if reason in LIMIT_REASONS:
                # The framework's own reason, if it ended the rollout, was there first and stays.
                self.trace.stop(str(reason))
        except ModelFailure as error:
            raise ProviderError(str(error), status_code=error.status) from error
        except asyncio.CancelledError:
            # The run's rollout timeout: verifiers scores it, so it is a limit and not an error.
            reason = StopReason.EPISODE_TIMEOUT
            raise
        finally:
            self._record(reason)

    def _record(self, reason: StopReason) -> None:
        assert self.root is not None
        assert self.toolbox is not None
        self.root.record.stop_reason = str(reason)
        self.trace.root_reply = self.root.answer
        self.trace.info["rlm"] = self.recorder.info(reason)
        self.trace.record_metrics(
            self.recorder.metrics(
                stop_reason=reason,
                answer=self.root.answer,
                answer_ready=self.root.answer_ready,
                retries=self.calls.retries,
                tool_calls=self.toolbox.calls,
                tool_seconds=self.toolbox.seconds,
                tool_errors=self.toolbox.errors,
            )
        )
        self._link_sub_calls()

    def _link_sub_calls(self) -> None:
        """Semantic edges from the turn that asked to the first request of each sub-call."""
        nodes = {
            call.acp.request_id: call.node for call in self.trace.calls if call.acp and call.node is not None
        }
        first_request = {call.id: call.request_ids[0] for call in self.recorder.calls if call.request_ids}
        seen: set[tuple[int, int]] = set()
        edges = []
        for turn in (turn for node in self.recorder.nodes for turn in node.turns):
            for target_id in (first_request[call_id] for call_id in turn.calls if call_id in first_request):
                source, target = nodes.get(turn.request_id), nodes.get(target_id)
                # Equal prompts with equal replies share one message node: one edge stands for both.
                if source is None or target is None or source == target or (source, target) in seen:
                    continue
                seen.add((source, target))
                edges.append(
                    SemanticEdge(
                        source_request_id=turn.request_id, target_request_id=target_id, type="subagent_call"
                    )
                )
        self.trace.add_semantic_edges(SemanticEdgeSet(edges=edges))

    async def close(self) -> None:
        if self.root is not None:
            await self.root.close()
        if self.toolbox is not None:
            await self.toolbox.close()
        if self._lease is not None:
            lease, self._lease = self._lease, None
            await lease.release()

    # --- the REPL ---

    async def _start_repl(self, node: RLMNode) -> ReplClient:
        config = self.config
        assert self.toolbox is not None
        names: list[str] = []
        if node.depth < config.max_depth:
            names += ["llm_batch", "llm_query"]
            if node.depth + 1 < config.max_depth:
                names += ["rlm_batch", "rlm_query"]
        functions = [tool.spec for tool in self.toolbox.repl_tools(config.tools_for).values()]
        functions += self.toolbox.worker_functions
        if config.folding:
            functions.append(FOLD)
        return await self._start_worker(
            context=node.context,
            context_files=node.context_files,
            functions=functions,
            depth_functions=names,
            handler=node.handle,
        )

    async def _start_baseline_repl(self) -> ReplClient:
        async def refuse(name: str, payload: dict[str, Any]) -> dict[str, Any]:
            return {"error": {"type": "ToolError", "message": f"there is no host function {name!r}"}}

        return await self._start_worker(
            context=None, context_files={}, functions=[], depth_functions=[], handler=refuse
        )

    async def _start_worker(self, **what: Any) -> ReplClient:
        for attempt in range(_START_ATTEMPTS):
            try:
                return await ReplClient.start(
                    self.session.runtime,
                    self.config.repl,
                    on_sub_error=self.config.on_sub_error,
                    hidden=taskset_modules() if self.config.repl.hide_tasksets else (),
                    **what,
                )
            except IsolationUnavailable:
                raise  # it will not be there on a second try either
            except ReplStartError as error:
                # A machine short of memory kills young processes; once more is cheaper than an episode.
                if attempt == _START_ATTEMPTS - 1:
                    raise SandboxError(str(error)) from error
                logger.warning("starting the REPL failed (attempt %d): %s", attempt + 1, error)
        raise AssertionError("unreachable: the last attempt returns or raises")


def taskset_modules() -> list[str]:
    """Top-level modules of the tasksets that this process has loaded, verifiers' own apart."""
    classes: list[type] = [vf.Taskset]
    for cls in classes:  # grows as it goes
        classes += cls.__subclasses__()
    return sorted({cls.__module__.partition(".")[0] for cls in classes} - {"verifiers", "__main__"})


FOLD = FunctionSpec(
    name="fold",
    description="Drop the n oldest turns from what you see; note takes their place.",
    source=None,
    parameters={"type": "object", "properties": {"n": {"type": "integer"}, "note": {"type": "string"}}},
)


def _task_value(trace: Trace, data: TaskData, name: str) -> Any:
    """REPL data of a task: ``trace.state.<name>`` (not serialised, for large data), else ``data.<name>``."""
    value = getattr(trace.state, name, None)
    return value if value is not None else getattr(data, name, None)


def _files(files: Any) -> dict[str, bytes]:
    if files is None:
        return {}
    if not isinstance(files, dict):
        raise TypeError(f"context_files must map names to text or bytes, not {type(files).__name__}")
    return {name: body.encode() if isinstance(body, str) else bytes(body) for name, body in files.items()}


def importable_packages(config: RLMHarnessConfig, runtime: Runtime) -> list[str]:
    """Packages that the model is told of. In a container only the configured ones are known to be there."""
    if config.packages:
        return list(config.packages)
    if runtime.type != "subprocess" or config.repl.python is not None:
        return []
    return [name for name in _SCIENTIFIC if importlib.util.find_spec(name) is not None]


__all__ = ["METRIC_NAMES", "RLMHarness", "RLMHarnessConfig", "RLMSession"]
