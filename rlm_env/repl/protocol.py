"""The host's side of the frame protocol: strict, bounded parsing of bytes that hostile code may have written.

Frames are described in ``worker.py``. Invariant: whatever the bytes, ``FrameReader`` either yields a frame
that passed every check or raises ``BadFrame``; it holds at most one frame of ``max_bytes``, decodes only
JSON, and refuses JSON whose decoded size would be out of proportion to its bytes. No text of a frame holds a
lone surrogate, which can neither be sent to a model nor written to a trace.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlm_env.repl.worker import HEADER

MAX_VALUES = 1_000_000
"""Most JSON values in one frame. ``[[],[],...`` takes 3 bytes an item on the wire and 64 in memory."""

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LONE = re.compile("[\ud800-\udfff]")
_KINDS = frozenset(b"HQORDE")


class BadFrame(ValueError):
    """The REPL process sent what no honest worker sends."""


@dataclass(frozen=True)
class Frame:
    kind: str
    body: dict[str, Any]


class FrameReader:
    """Cuts a byte stream into frames. ``feed`` never raises; iterating does, with ``BadFrame``."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Frame | None:
        """The next whole frame, or None until more bytes are fed."""
        if len(self._buffer) < HEADER.size:
            return None
        size, kind = HEADER.unpack_from(self._buffer)
        if kind not in _KINDS:
            raise BadFrame(f"unknown kind {kind}")
        if size > self.max_bytes:
            raise BadFrame(f"a frame of {size} bytes; the limit is {self.max_bytes}")
        end = HEADER.size + size
        if len(self._buffer) < end:
            return None
        payload = bytes(memoryview(self._buffer)[HEADER.size : end])
        del self._buffer[:end]
        return Frame(chr(kind), decode(payload))

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self.next()) is not None:
            yield frame


def decode(payload: bytes) -> dict[str, Any]:
    """One JSON object, or ``BadFrame``. NaN and infinities are refused: they are not JSON. Lone surrogates
    become U+FFFD."""
    if _values(payload) > MAX_VALUES and _values(_STRINGS.sub(b'""', payload)) > MAX_VALUES:
        raise BadFrame(f"more than {MAX_VALUES:,} values in one frame")
    try:
        body = json.loads(payload.decode("ascii"), parse_constant=_refuse)
        if _SURROGATE.search(payload) is not None:
            body = _sendable(body)
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"not JSON: {error}"[:200]) from None
    if not isinstance(body, dict):
        raise BadFrame(f"a JSON {type(body).__name__} where an object belongs")
    return body


def _sendable(value: Any) -> Any:
    """``value`` with each lone surrogate of its texts replaced by U+FFFD. Pairs are characters already."""
    if isinstance(value, str):
        return _LONE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_sendable(item) for item in value]
    if isinstance(value, dict):
        return {_sendable(key): _sendable(item) for key, item in value.items()}
    return value


def _values(payload: bytes) -> int:
    return payload.count(b",") + payload.count(b"[") + payload.count(b"{")


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def field(body: dict[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """``body[name]``, checked to be of ``kind`` (bool is no int here)."""
    value = body.get(name)
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise BadFrame(f"{name} is {type(value).__name__}")
    return value


def strings(body: dict[str, Any], name: str, count: int, length: int) -> tuple[str, ...]:
    """``body[name]``, checked to be a list of at most ``count`` strings; each is cut to ``length``."""
    values = field(body, name, list)
    if len(values) > count or not all(isinstance(value, str) for value in values):
        raise BadFrame(f"{name} is not a list of at most {count} strings")
    return tuple(value[:length] for value in values)


def cut(head: str, tail: str, total: int, limit: int) -> tuple[str, int]:
    """The shown text of an output of ``total`` characters that begins with ``head`` and ends with ``tail``.

    Returns the text and the number of characters left out. The text has at most ``limit`` characters of
    output, plus a note that says how many are missing. Works on characters, so none is ever split.

    >>> cut("abcdefgh", "efgh", 8, 8)
    ('abcdefgh', 0)
    >>> cut("abcdefgh", "yz", 26, 8)
    ('abcdef\\n[... 18 characters cut ...]\\nyz', 18)
    """
    if total <= limit:
        return head[:limit], 0
    ending = tail[len(tail) - min(len(tail), limit // 4) :]
    beginning = head[: limit - len(ending)]
    missing = total - len(beginning) - len(ending)
    return f"{beginning}\n[... {missing:,} characters cut ...]\n{ending}", missing
