"""Oolong: questions about aggregates over long texts, scored by the official rules."""

from oolong.taskset import OolongTaskset

__all__ = ["OolongTaskset"]
