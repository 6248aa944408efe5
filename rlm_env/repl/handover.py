"""What the host hands to a worker at its start: checked, and encoded as frames.

Invariant: what the worker holds equals what was given. Data that JSON would change on the way (integer keys,
tuples, NaN) is refused with its place named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlm_env.repl.config import Answer, FunctionSpec, ReplConfig
from rlm_env.repl.worker import pack, pack_json

CHUNK = 1 << 20
"""Bytes of context or file in one frame."""
DEPTH_FUNCTIONS = ("llm_batch", "llm_query", "rlm_batch", "rlm_query")
RESERVED = (
    "context",
    "context_files",
    "answer",
    *DEPTH_FUNCTIONS,
    "SubCallError",
    "SubCallLimitError",
    "SubCallFailure",
    "ToolError",
)
"""Names that every REPL defines and restores (the depth functions only where they are available)."""


@dataclass(frozen=True)
class Handover:
    """What every worker of one REPL is given, the first and those that replace it."""

    context: Any
    files: dict[str, bytes]
    functions: Sequence[FunctionSpec]
    depth_functions: Sequence[str]
    on_sub_error: Literal["raise", "marker"]
    answer_chars: int

    def check(self, config: ReplConfig) -> None:
        """Raises ValueError or TypeError, naming what cannot be handed over and why."""
        _check_data(self.context, self.files, config)
        _check_functions(self.functions, self.depth_functions)

    @property
    def requests(self) -> set[str]:
        """Names of the requests that REPL code may make."""
        names = {name.replace("query", "batch") for name in self.depth_functions}
        return names | {"tool" for spec in self.functions if spec.source is None}

    def frames(self, answer: Answer) -> Iterator[bytes]:
        """The start frame, then the context and the files in pieces of at most ``CHUNK`` bytes."""
        kind, context = _encode_context(self.context)
        yield pack_json(
            "S",
            {
                "context": {"kind": kind, "bytes": len(context)},
                "files": [[name, len(data)] for name, data in self.files.items()],
                "answer": {"content": answer.content, "ready": answer.ready},
                "functions": [
                    {"name": spec.name, "description": spec.description, "source": spec.source}
                    for spec in self.functions
                ],
                "depth_functions": list(self.depth_functions),
                "on_sub_error": self.on_sub_error,
                "answer_chars": self.answer_chars,
            },
        )
        for frame_kind, data in (("C", context), *(("F", memoryview(data)) for data in self.files.values())):
            for begin in range(0, len(data), CHUNK):
                yield pack(frame_kind, bytes(data[begin : begin + CHUNK]))


def _encode_context(context: Any) -> tuple[str, memoryview]:
    if context is None:
        return "none", memoryview(b"")
    if isinstance(context, str):
        return "str", memoryview(context.encode("utf-8", "surrogatepass"))
    text = json.dumps(context, ensure_ascii=False, separators=(",", ":"))
    return "json", memoryview(text.encode("utf-8", "surrogatepass"))


def _check_data(context: Any, files: Mapping[str, bytes], config: ReplConfig) -> None:
    _check_json(context, "context")
    for name in files:
        parts = name.split("/")
        if not name or "\0" in name or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"context_files: {name!r} is no plain relative path")
    size = sum(map(len, files.values()))
    if size > config.scratch_mb << 20:
        raise ValueError(
            f"context_files hold {size / 2**20:.1f} MB, over repl.scratch_mb={config.scratch_mb}; raise it"
        )


def _check_json(value: Any, where: str) -> None:
    """JSON would silently turn integer keys into text and tuples into lists; say so instead."""
    todo = [(value, where)]
    while todo:
        value, where = todo.pop()
        if isinstance(value, dict):
            for key, item in value.items():
                if not isinstance(key, str):
                    raise TypeError(f"{where} has the key {key!r}; keys must be str")
                if not isinstance(item, (str, int)):
                    todo.append((item, f"{where}[{key!r}]"))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if not isinstance(item, (str, int)):
                    todo.append((item, f"{where}[{index}]"))
        elif not (value is None or isinstance(value, (str, bool, int))):
            if not isinstance(value, float):
                raise TypeError(f"{where} is {type(value).__name__}; context must be JSON data")
            if not math.isfinite(value):
                raise ValueError(f"{where} is {value}, which is not JSON")


def _check_functions(functions: Sequence[FunctionSpec], depth_functions: Sequence[str]) -> None:
    unknown = set(depth_functions) - set(DEPTH_FUNCTIONS)
    if unknown:
        raise ValueError(f"depth_functions: {sorted(unknown)} are not among {DEPTH_FUNCTIONS}")
    seen = set(RESERVED)
    for spec in functions:
        if not spec.name.isidentifier():
            raise ValueError(f"function {spec.name!r} has no name that Python could call")
        if spec.name in seen:
            raise ValueError(f"function {spec.name!r} would hide another of that name in the REPL; rename it")
        seen.add(spec.name)
