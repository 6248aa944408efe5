"""Mathematics with Python: problems with one verifiable answer, checked symbolically."""

from math_python.taskset import MathPythonTaskset

__all__ = ["MathPythonTaskset"]
