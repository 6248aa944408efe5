"""What is measured of a finished group, under the names that the trainer logs.

Values follow TRL's convention (`training.rollout_link.MetricValue`): means over episodes are `(sum, count)`
pairs, so that they stay means over episodes when several groups fall into one log line.

Names: `reward`, `reward_std` (within groups), `reward_part/<name>`; `episode/<metric>` for what the harness
and the task record; `rollout/...` for counts and seconds; `rows/...` for what became of branches.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import fields

from training.advantages import GroupAdvantages
from training.rollout_episode import Outcome, episode_reward
from training.rollout_link import MetricValue
from training.samples import RowCounts


def group_metrics(
    outcomes: Sequence[Outcome], result: GroupAdvantages, counts: RowCounts, seconds: float, rows: int
) -> dict[str, MetricValue]:
    """Measurements of one group.

    Args:
        outcomes: one per episode slot.
        result: the group's advantages.
        counts: what became of the branches, and how many tokens are trained.
        seconds: wall clock of the group.
        rows: rows that go to the trainer.
    """
    sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def mean(name: str, value: float) -> None:
        sums[name][0] += value
        sums[name][1] += 1

    for outcome in outcomes:
        if outcome.episode is None:
            continue
        reward = episode_reward(outcome.episode)
        assert reward is not None  # Outcome holds scored episodes only
        mean("reward", reward)
        mean("rollout/episode_seconds", outcome.seconds)
        for trace in outcome.episode.traces:
            for name, part in trace.rewards.items():
                if part is not None:
                    mean(f"reward_part/{name}", part.value)
            for name, value in trace.metrics.items():
                if value is not None:
                    mean(f"episode/{name}", value)
    out: dict[str, MetricValue] = {name: (total, count) for name, (total, count) in sums.items()}
    if result.valid:
        out["reward_std"] = (result.std, 1.0)
    out["rollout/group_seconds"] = (seconds, 1.0)
    out["rollout/groups_kept"] = (float(rows > 0), 1.0)
    out["rollout/groups_total"] = 1.0
    out["rollout/groups_kept_total"] = float(rows > 0)
    if result.drop is not None:
        out[f"rollout/groups_dropped_{result.drop.value}_total"] = 1.0
    out["rollout/episodes_total"] = float(len(outcomes))
    out["rollout/episodes_left_out_total"] = float(sum(outcome.episode is None for outcome in outcomes))
    out["rollout/episodes_abandoned_total"] = float(sum(outcome.abandoned for outcome in outcomes))
    for name, count in Counter(error for outcome in outcomes for error in outcome.errors).items():
        out[f"rollout/errors/{name}_total"] = float(count)
    for field in fields(counts):
        out[f"rows/{field.name}_total"] = float(getattr(counts, field.name))
    return out
