"""Statistics of an evaluation, as pure functions of lists of numbers.

The idea: the unit that was drawn at random is the *task*, so every interval resamples tasks, with all their
episodes (a cluster bootstrap). Two modes that ran the same tasks are compared by the difference on each task:
tasks differ far more than modes do, and the paired interval is free of that spread.

Every function is deterministic: the generator is seeded by its `seed` argument, never global.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

RESAMPLES = 10_000
CONFIDENCE = 0.95
_CHUNK_CELLS = 4_000_000
"""Resample indices held in memory at once (int64, so 32 MB)."""


@dataclass(frozen=True)
class Estimate:
    """A mean with a percentile-bootstrap interval."""

    mean: float
    low: float | None
    high: float | None
    """None with fewer than two tasks: there is nothing to resample."""
    tasks: int
    episodes: int

    def to_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


@dataclass(frozen=True)
class Paired:
    """`b - a` over the tasks that both have."""

    difference: float
    low: float | None
    high: float | None
    tasks: int
    wins: int
    """Tasks on which b is better."""
    ties: int
    losses: int

    def to_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


@dataclass(frozen=True)
class Ratio:
    """How many times the value per cost of b is that of a, over the tasks that both have."""

    ratio: float
    low: float | None
    high: float | None
    """None with fewer than two tasks; infinite where a has no value in too many of the resamples."""
    tasks: int


@dataclass(frozen=True)
class Spread:
    """A cost with a heavy tail: the mean alone would hide it."""

    mean: float
    median: float
    p90: float
    max: float
    total: float
    n: int

    def to_dict(self) -> dict[str, float | int]:
        return asdict(self)


def _bootstrap_ratio(
    sums: np.ndarray, counts: np.ndarray, *, resamples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Percentile interval of sum(sums) / sum(counts) when clusters are drawn with replacement."""
    generator = np.random.default_rng(seed)
    n = len(sums)
    means = np.empty(resamples)
    step = max(1, _CHUNK_CELLS // n)
    for start in range(0, resamples, step):
        stop = min(resamples, start + step)
        drawn = generator.integers(0, n, size=(stop - start, n))
        means[start:stop] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - confidence) / 2 * 100
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def mean_ci(
    by_task: Mapping[str, Sequence[float]],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Estimate | None:
    """Mean over episodes, with an interval over tasks.

    Args:
        by_task: task id -> its episodes' values; tasks without values are left out.
        resamples: bootstrap draws.
        confidence: e.g. 0.95.
        seed: of the draws.

    Returns None when there is no value at all.
    """
    clusters = [list(values) for _, values in sorted(by_task.items()) if len(values)]
    if not clusters:
        return None
    sums = np.array([sum(values) for values in clusters], dtype=float)
    counts = np.array([len(values) for values in clusters], dtype=float)
    mean = float(sums.sum() / counts.sum())
    if not math.isfinite(mean):
        raise ValueError(
            "mean_ci: a value is not finite; leave unscored episodes out, do not pass them as nan"
        )
    low = high = None
    if len(clusters) > 1:
        low, high = _bootstrap_ratio(sums, counts, resamples=resamples, confidence=confidence, seed=seed)
    return Estimate(mean, low, high, tasks=len(clusters), episodes=int(counts.sum()))


def paired_difference(
    a: Mapping[str, Sequence[float]],
    b: Mapping[str, Sequence[float]],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Paired | None:
    """Mean over common tasks of (mean of b) - (mean of a), with a bootstrap interval over those tasks.

    Returns None when no task has values on both sides.
    """
    common = sorted(task for task in a if task in b and len(a[task]) and len(b[task]))
    if not common:
        return None
    differences = np.array([np.mean(b[task]) - np.mean(a[task]) for task in common])
    low = high = None
    if len(common) > 1:
        low, high = _bootstrap_ratio(
            differences,
            np.ones(len(common)),
            resamples=resamples,
            confidence=confidence,
            seed=seed,
        )
    close = np.isclose(differences, 0.0, atol=1e-12)
    return Paired(
        difference=float(differences.mean()),
        low=low,
        high=high,
        tasks=len(common),
        wins=int(((differences > 0) & ~close).sum()),
        ties=int(close.sum()),
        losses=int(((differences < 0) & ~close).sum()),
    )


def efficiency_ratio(
    a: Mapping[str, Sequence[tuple[float, float]]],
    b: Mapping[str, Sequence[tuple[float, float]]],
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Ratio | None:
    """(mean value / mean cost) of b over that of a, on their common tasks, with an interval that resamples
    these tasks for both at once.

    Args:
        a, b: task id -> (value, cost) of its episodes; a task counts once, with the means of its episodes.

    Returns None when no task is common, or when a has no value or either has no cost: there is no ratio.
    """
    common = sorted(task for task in a if task in b and len(a[task]) and len(b[task]))
    if not common:
        return None
    # Columns: value and cost of a, value and cost of b.
    means = np.array([[*np.mean(a[task], axis=0), *np.mean(b[task], axis=0)] for task in common])
    value_a, cost_a, value_b, cost_b = means.sum(axis=0)
    if value_a <= 0 or cost_a <= 0 or cost_b <= 0:
        return None
    low = high = None
    n = len(common)
    if n > 1:
        generator = np.random.default_rng(seed)
        counts = generator.multinomial(n, np.full(n, 1 / n), size=resamples)
        sums = counts @ means
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = (sums[:, 2] / sums[:, 3]) / (sums[:, 0] / sums[:, 1])
        tail = (1 - confidence) / 2 * 100
        # A resample without any value on either side says nothing; one without value in a is an infinite
        # ratio, which an interpolated percentile could not hold.
        known = drawn[~np.isnan(drawn)]
        low, high = (float(v) for v in np.percentile(known, [tail, 100 - tail], method="inverted_cdf"))
    return Ratio(float(value_b / cost_b / (value_a / cost_a)), low, high, tasks=n)


def spread(values: Sequence[float]) -> Spread | None:
    """Mean, median, 90th percentile (linear interpolation), maximum and sum; None without values."""
    if not len(values):
        return None
    array = np.asarray(values, dtype=float)
    return Spread(
        mean=float(array.mean()),
        median=float(np.median(array)),
        p90=float(np.percentile(array, 90)),
        max=float(array.max()),
        total=float(array.sum()),
        n=len(array),
    )


def length_bin(length: float, base: float = 4.0) -> tuple[float, float]:
    """The half-open bin [base**k, base**(k+1)) that holds `length` (> 0), for axes of context length."""
    if length <= 0:
        raise ValueError(f"length_bin: a length must be positive, got {length}")
    k = math.floor(math.log(length, base) + 1e-9)
    return base**k, base ** (k + 1)
