"""Rewards of one group of episodes -> one advantage per episode.

The idea of GRPO (arXiv 2402.03300): the episodes of one task are each other's baseline. The invariant here is
that **only valid episodes take part**. An episode that failed for reasons of infrastructure (`ep.ok` false, a
rollout deadline, no reward) is no bad answer: it gets no advantage, and it does not move the mean that the
others are measured against. A group that then carries no signal is dropped, and every drop has a name, so
that it can be counted.

Not covered: which tokens an advantage falls on, and with what weight (`training.samples`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

STD_EPSILON = 1e-6
"""Added to the standard deviation, so that a group of nearly equal rewards does not explode."""

SAME_REWARD = 1e-9
"""Rewards that differ by less are equal: the group has no signal, only rounding."""


class GroupDrop(Enum):
    """Why a group trains nothing."""

    TOO_FEW_VALID = "too_few_valid"
    """Fewer than two valid episodes: nothing to compare with."""
    NO_SIGNAL = "no_signal"
    """All valid rewards are equal: every advantage would be 0."""


@dataclass(frozen=True)
class GroupAdvantages:
    """What the rewards of a group amount to. `G` is the number of episodes that were started."""

    advantages_G: tuple[float | None, ...]
    """One per episode in the order given; None for an invalid episode, and for all when the group is
    dropped."""
    drop: GroupDrop | None
    """Why the group is dropped; None when it is kept."""
    valid: int
    """Valid episodes."""
    mean: float
    """Mean reward over the valid episodes; NaN when there is none."""
    std: float
    """Population standard deviation over the valid episodes; NaN when there is none."""


def group_advantages(
    rewards_G: Sequence[float | None], *, scale_by_std: bool = False, leave_one_out: bool = False
) -> GroupAdvantages:
    """Advantages of one group.

    With `n` valid rewards `r`, mean `m` and population standard deviation `s`:

    - plain: `r_i - m`
    - `leave_one_out` (RLOO, arXiv 2402.14740): `r_i` minus the mean of the *other* valid rewards, which is
      `n / (n - 1) * (r_i - m)`: unbiased, because an episode is no part of its own baseline
    - `scale_by_std` (the original GRPO): the above divided by `s + 1e-6`; it makes easy and hard tasks pull
      equally, at the price of the bias that arXiv 2503.20783 describes

    Args:
        rewards_G: reward per episode; None marks an invalid episode.
        scale_by_std: divide by the group's standard deviation.
        leave_one_out: take each episode's baseline over the other episodes.

    Raises:
        ValueError: a reward is NaN or infinite (a broken reward function; mark the episode None instead).

    Example: rewards `[1, 0, None, 0]` have mean 1/3 over 3 valid episodes, so the advantages are
    `[2/3, -1/3, None, -1/3]`; with leave-one-out `[1, -1/2, None, -1/2]`.
    """
    valid = [reward for reward in rewards_G if reward is not None]
    for reward in valid:
        if not math.isfinite(reward):
            raise ValueError(
                f"reward {reward!r} is not a finite number: give an episode that cannot be scored None, "
                "or fix the reward function"
            )
    nothing: tuple[float | None, ...] = (None,) * len(rewards_G)
    if not valid:
        return GroupAdvantages(nothing, GroupDrop.TOO_FEW_VALID, 0, math.nan, math.nan)
    n = len(valid)
    mean = math.fsum(valid) / n
    std = math.sqrt(math.fsum((reward - mean) ** 2 for reward in valid) / n)
    if n < 2:
        return GroupAdvantages(nothing, GroupDrop.TOO_FEW_VALID, n, mean, std)
    if max(valid) - min(valid) < SAME_REWARD:
        return GroupAdvantages(nothing, GroupDrop.NO_SIGNAL, n, mean, std)
    scale = (n / (n - 1) if leave_one_out else 1.0) / (std + STD_EPSILON if scale_by_std else 1.0)
    advantages = tuple(None if reward is None else (reward - mean) * scale for reward in rewards_G)
    return GroupAdvantages(advantages, None, n, mean, std)
