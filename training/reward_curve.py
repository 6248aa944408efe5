"""The reward curve of a run as a PNG: every step, a moving average, and the held-out evaluations at its
ends."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#8C8C8C"
"""Okabe and Ito's palette: told apart in print and by colour-blind readers; the marks differ in shape too."""


WINDOW = 3
"""Steps of the moving average."""


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Centred means of up to `window` values (odd), of fewer at the ends. A trailing mean would lag behind a
    curve that rises this fast."""
    half = window // 2
    around = [values[max(0, at - half) : at + half + 1] for at in range(len(values))]
    return [sum(part) / len(part) for part in around]


def binomial_interval(mean: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a success rate `mean` over `n` episodes."""
    z = 1.959964
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def plot_reward_curve(
    path: Path,
    curve: Sequence[tuple[int, float | None]],
    *,
    before: float | None = None,
    after: float | None = None,
    n_eval: int = 0,
    title: str = "",
) -> None:
    """Writes the figure, whole or not at all.

    Args:
        path: PNG file.
        curve: (step, mean reward of its episodes); steps without one are left out.
        before, after: held-out success rates at the start and the end of training, in [0, 1].
        n_eval: episodes behind each of them, for their intervals.
        title: of the figure.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    points = [(step, reward) for step, reward in curve if reward is not None]
    steps, rewards = [step for step, _ in points], [reward for _, reward in points]
    with plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
        axes.plot(steps, rewards, ".", color=GREY, markersize=5, label="training, each step")
        if rewards:
            smooth = moving_average(rewards, WINDOW)
            axes.plot(steps, smooth, "-", color=BLUE, linewidth=2, label=f"training, mean of {WINDOW} steps")
        ends = [(0, before), (steps[-1] if steps else 0, after)]
        marked = [(step, mean) for step, mean in ends if mean is not None]
        if marked and n_eval:
            intervals = [binomial_interval(mean, n_eval) for _, mean in marked]
            errors = [
                [mean - low for (_, mean), (low, _) in zip(marked, intervals, strict=True)],
                [high - mean for (_, mean), (_, high) in zip(marked, intervals, strict=True)],
            ]
            axes.errorbar(
                [step for step, _ in marked],
                [mean for _, mean in marked],
                yerr=errors,
                fmt="D",
                color=ORANGE,
                markersize=7,
                capsize=4,
                zorder=3,
                label=f"held-out tasks (n = {n_eval}, 95 % interval)",
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="optimizer step", ylabel="mean reward", ylim=(-0.03, 1.03), title=title)
        axes.grid(axis="y", alpha=0.3)
        axes.legend(loc="lower right", frameon=False)
        partial = path.with_name(f".{path.name}.partial")
        figure.savefig(partial, dpi=150, format="png")
        plt.close(figure)
    os.replace(partial, path)
