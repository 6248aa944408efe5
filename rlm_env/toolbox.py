"""The tools of a task (MCP servers) and the functions of the user, behind one call.

A tool's name is its own when that is unique over the servers and a Python identifier, else it is prefixed
with its server's. Each call is timed and counted; a failure is a ``ToolFailure`` that the caller shows to
the model, never an exception that ends the episode.
"""

from __future__ import annotations

import asyncio
import builtins
import functools
import importlib
import inspect
import itertools
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError, validate_call
from verifiers.v1.harnesses.utils.mcp import MCPConnection, mcp_content_to_chat_content

from rlm_env.config import FunctionConfig, RLMHarnessConfig
from rlm_env.repl import FunctionSpec

ToolCaller = Callable[[dict[str, Any]], Any]


class ToolFailure(Exception):
    """A tool call that the model should read about and may try again differently."""


@dataclass
class Tool:
    """One callable tool: ``schema`` is its JSON-schema of parameters, ``call`` takes the arguments."""

    name: str
    description: str
    schema: dict[str, Any]
    call: ToolCaller
    seconds_limit: float
    repl_name: str
    """Its name as a function of the REPL, where ``name`` may not hide a builtin such as ``open``."""

    @property
    def wire(self) -> dict[str, Any]:
        """The tool as a chat-completions ``tools`` entry."""
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": self.schema},
        }

    @property
    def spec(self) -> FunctionSpec:
        """The tool as a function of the REPL whose calls come to the host."""
        return FunctionSpec(
            name=self.repl_name, description=self.description, source=None, parameters=self.schema
        )

    @property
    def signature(self) -> str:
        """``name(a, b=...)``, for prompts and messages."""
        return self._signature(self.name)

    @property
    def repl_signature(self) -> str:
        """The same as a function of the REPL."""
        return self._signature(self.repl_name)

    def _signature(self, called: str) -> str:
        required = set(self.schema.get("required") or [])
        names = [
            name if name in required else f"{name}=..." for name in (self.schema.get("properties") or {})
        ]
        return f"{called}({', '.join(names)})"


@dataclass
class Toolbox:
    """All tools of one episode. ``tools`` come from the task, ``functions`` from the harness's config."""

    tools: dict[str, Tool] = field(default_factory=dict)
    functions: dict[str, Tool] = field(default_factory=dict)
    worker_functions: list[FunctionSpec] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack, repr=False)

    @classmethod
    async def open(cls, config: RLMHarnessConfig, mcp_urls: dict[str, str]) -> Toolbox:
        """Connect to the task's servers and resolve the user's functions. Raises on a server that cannot
        be reached and on a function that cannot be imported."""
        box = cls()
        for function in config.functions:
            box._add_function(function)
        try:
            await box._connect(config, mcp_urls)
        except BaseException:
            await box.close()
            raise
        return box

    async def _connect(self, config: RLMHarnessConfig, mcp_urls: dict[str, str]) -> None:
        headers = config.resolve_mcp_headers(mcp_urls)
        found: list[tuple[str, Any, list[MCPConnection]]] = []
        for server, url in mcp_urls.items():
            spec = {"url": url, "timeout": config.tool_timeout, "headers": headers.get(server)}
            pool = [MCPConnection(spec) for _ in range(config.tool_connections)]
            for connection in pool:
                self._stack.push_async_callback(connection.aclose)
            listed = await pool[0].run(lambda client: client.list_tools())
            found.extend((server, tool, pool) for tool in listed.tools)
        names = Counter(tool.name for _, tool, _ in found)
        disabled = set(config.disabled_tools or [])
        for server, tool, pool in found:
            full = f"{server}_{tool.name}" if server else tool.name
            name = tool.name if names[tool.name] == 1 and tool.name.isidentifier() else full
            if disabled & {name, full, tool.name}:
                continue
            if name in self.tools or name in self.functions:
                raise ValueError(f"two tools are called {name!r}; rename one, or list it in disabled_tools")
            self.tools[name] = Tool(
                name=name,
                description=tool.description or "",
                schema=tool.input_schema or {"type": "object", "properties": {}},
                call=functools.partial(_call_mcp, itertools.cycle(pool), tool.name),
                seconds_limit=config.tool_timeout,
                repl_name=f"{server or 'tool'}_{tool.name}" if hasattr(builtins, name) else name,
            )

    def _add_function(self, config: FunctionConfig) -> None:
        function = load_function(config.fn)
        name = config.name or function.__name__
        description = inspect.getdoc(function) or ""
        if config.where == "worker":
            try:
                source = textwrap.dedent(inspect.getsource(function))
            except (OSError, TypeError) as error:
                raise ValueError(
                    f"functions: the source of {config.fn!r} cannot be read, so it cannot be defined in the "
                    'worker; set where = "host"'
                ) from error
            self.worker_functions.append(
                FunctionSpec(
                    name=name,
                    description=f"{name}{inspect.signature(function)}\n{description}".strip(),
                    source=source
                    if name == function.__name__
                    else f"{source}\n{name} = {function.__name__}\n",
                    parameters=None,
                )
            )
            return
        self.functions[name] = Tool(
            name=name,
            description=description,
            schema=_schema(function),
            call=functools.partial(_call_function, validate_call(function)),
            seconds_limit=config.seconds,
            repl_name=name,
        )

    def host_tool(self, name: str) -> Tool | None:
        return self.tools.get(name) or self.functions.get(name)

    def repl_tools(self, tools_for: str) -> dict[str, Tool]:
        """What REPL code can call, by its name there."""
        tools = [*self.functions.values()]
        if tools_for in ("repl", "both"):
            tools += self.tools.values()
        return {tool.repl_name: tool for tool in tools}

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """The tool's result. Raises ToolFailure."""
        tool = self.host_tool(name)
        if tool is None:
            raise ToolFailure(f"there is no tool {name!r}; there are: {', '.join(self.tools) or 'none'}")
        missing = [key for key in tool.schema.get("required") or [] if key not in arguments]
        known = tool.schema.get("properties")
        unknown = (
            [key for key in arguments if key not in known]
            if known is not None and tool.schema.get("additionalProperties", False) is False
            else []
        )
        if missing or unknown:
            raise ToolFailure(
                f"{tool.signature}: "
                + "; ".join(
                    part
                    for part in (
                        f"missing arguments {missing}" if missing else "",
                        f"unknown arguments {unknown}" if unknown else "",
                    )
                    if part
                )
            )
        self.calls[name] += 1
        started = time.monotonic()
        try:
            async with asyncio.timeout(tool.seconds_limit):
                return await tool.call(arguments)
        except TimeoutError:
            self.errors[name] += 1
            raise ToolFailure(f"{name} took longer than {tool.seconds_limit:g} s") from None
        except ToolFailure as error:
            self.errors[name] += 1
            raise ToolFailure(f"{name}: {error}") from error
        except Exception as error:
            self.errors[name] += 1
            raise ToolFailure(f"{name} failed: {type(error).__name__}: {error}") from error
        finally:
            self.seconds[name] += time.monotonic() - started

    @staticmethod
    def bind(tool: Tool, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Positional and keyword arguments of a REPL call as the tool's named arguments."""
        names = list(tool.schema.get("properties") or {})
        if len(args) > len(names):
            raise ToolFailure(
                f"{tool.repl_signature} takes at most {len(names)} arguments, {len(args)} were given"
            )
        bound = dict(zip(names, args, strict=False))
        if twice := bound.keys() & kwargs.keys():
            raise ToolFailure(f"{tool.repl_signature}: given twice: {sorted(twice)}")
        return {**bound, **kwargs}

    async def close(self) -> None:
        await self._stack.aclose()


async def _call_mcp(pool: itertools.cycle[MCPConnection], name: str, arguments: dict[str, Any]) -> Any:
    result = await next(pool).run(lambda client: client.call_tool(name, arguments))
    content = mcp_content_to_chat_content(result.content)
    if getattr(result, "is_error", False):
        raise ToolFailure(content if isinstance(content, str) else str(content))
    return content


async def _call_function(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call ``function``, which validates its arguments by their annotations: they come from the model."""
    try:
        if inspect.iscoroutinefunction(function):
            return await function(**arguments)
        # A blocking function must not hold up the other episodes of this event loop.
        result = await asyncio.to_thread(functools.partial(function, **arguments))
        return await result if inspect.isawaitable(result) else result
    except ValidationError as error:
        if error.title != function.__name__:
            raise  # of something that the function itself validates
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ToolFailure(f"wrong arguments: {'; '.join(faults)}") from None


def load_function(path: str) -> Callable[..., Any]:
    """The function at ``package.module:function``."""
    module, _, name = path.partition(":")
    if not name:
        raise ValueError(f"functions: {path!r} is not of the form package.module:function")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"functions: {path!r} cannot be imported: {error}") from error
    if not callable(function):
        raise ValueError(f"functions: {path!r} is a {type(function).__name__}, not a function")
    return function


def _schema(function: Callable[..., Any]) -> dict[str, Any]:
    """A JSON schema of the function's parameters, by pydantic."""
    adapter: TypeAdapter[Any] = TypeAdapter(function)  # type: ignore[arg-type]
    schema = adapter.json_schema()
    if "properties" not in schema:
        # Positional-only and *args functions describe themselves as arrays.
        raise ValueError(f"functions: {function.__name__} must take named parameters")
    return schema
