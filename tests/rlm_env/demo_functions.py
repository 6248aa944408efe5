"""Functions that test_functions.py registers in the harness's config."""

import asyncio
import os


def lookup(key: str, default: int = 0) -> int:
    """The value of a key."""
    return {"a": 1}.get(key, default)


async def slow(seconds: float) -> str:
    """Waits."""
    await asyncio.sleep(seconds)
    return "slept"


def broken() -> None:
    """Always fails."""
    raise KeyError("nothing here")


def not_json(value: float) -> object:
    """NaN, or an object."""
    return value if value != value else object()


def double(x):
    """Twice x; runs in the worker."""
    import math

    return math.prod([2, x])


def process_id() -> int:
    """Which process it runs in."""
    return os.getpid()
