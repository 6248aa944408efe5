"""DeepDive: questions that take several steps of searching and reading to answer. A verifiers v1 taskset.

Names are loaded when they are asked for: the reader processes and the tool server import parts of this
package, and have no use for the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepdive.config import DeepDiveConfig
    from deepdive.taskset import DeepDiveTaskset

__all__ = ["DeepDiveConfig", "DeepDiveTaskset"]


def __getattr__(name: str) -> Any:
    if name == "DeepDiveTaskset":
        from deepdive.taskset import DeepDiveTaskset

        return DeepDiveTaskset
    if name == "DeepDiveConfig":
        from deepdive.config import DeepDiveConfig

        return DeepDiveConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
