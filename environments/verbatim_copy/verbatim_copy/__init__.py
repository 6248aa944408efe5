"""Verbatim copy: reproduce a generated text character by character."""

from verbatim_copy.taskset import VerbatimCopyTaskset

__all__ = ["VerbatimCopyTaskset"]
