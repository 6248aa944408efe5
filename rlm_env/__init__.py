"""The Recursive Language Model scaffold as a verifiers v1 harness (id ``rlm_env``).

A model works in a persistent Python REPL; the input data lives in the REPL and never in its context; it
reads by fresh sub-LLMs called from code; its answer is a variable that it can inspect and mend.
``harness.py`` is the way in; ``loop.py`` is the algorithm.
"""

from rlm_env.config import FunctionConfig, RLMHarnessConfig
from rlm_env.harness import RLMHarness
from rlm_env.limits import LimitsConfig, StopReason
from rlm_env.repl import ReplConfig

__all__ = ["FunctionConfig", "LimitsConfig", "RLMHarness", "RLMHarnessConfig", "ReplConfig", "StopReason"]
