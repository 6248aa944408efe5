"""One slot of a group: an episode that counts, or the errors that it failed with.

The invariant: **a failure of infrastructure is never a reward.** `run_slot` gives back a scored episode with
its tokens, or none; what went wrong on the way is listed by type. An episode that hangs is cancelled, and one
that does not even end then is abandoned and counted, so that a slot always ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import verifiers.v1 as vf

from training.samples import BranchTokens, RowCounts, TraceTokensError, episode_branches

logger = logging.getLogger(__name__)

CANCEL_GRACE_SECONDS = 10.0
"""Time for a cancelled episode to close its REPL; after that it is abandoned."""

RETRY_SECONDS = 0.5
"""Wait before an episode's second attempt; doubled for each further one. Gives a server that restarts its
scheduler or drops connections under load a moment, and keeps a dead one from being hammered."""


class EpisodeFailed(Exception):
    """One attempt failed for reasons that are not the policy's.

    Args:
        kind: type of the error, the name it is counted under.
        text: what happened.
        abandoned: the attempt did not end when it was cancelled.
    """

    def __init__(self, kind: str, text: str, *, abandoned: bool = False) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.abandoned = abandoned


@dataclass
class Outcome:
    """What became of one slot."""

    version: int
    """Policy version at the start of the last attempt."""
    episode: vf.Episode | None = None
    """The episode that counts."""
    branches: list[BranchTokens] = field(default_factory=list)
    """Its conversations."""
    counts: RowCounts = field(default_factory=RowCounts)
    """What became of its branches."""
    seconds: float = 0.0
    """Wall clock of the last attempt."""
    errors: list[str] = field(default_factory=list)
    """Types of the errors of failed attempts."""
    abandoned: int = 0
    """Attempts that did not end when they were cancelled."""


def episode_reward(episode: vf.Episode) -> float | None:
    """The reward that the policy is trained on: the sum over the episode's trainable traces; None where one
    of them was not scored."""
    traces = [trace for trace in episode.traces if trace.agent.trainable]
    if not traces or any(not trace.rewards or None in trace.rewards.values() for trace in traces):
        return None
    return sum(trace.reward for trace in traces)


def check_episode(episode: vf.Episode) -> None:
    """Passes an episode that counts.

    Raises:
        EpisodeFailed: it does not. verifiers reports a failed launch as `ok = False` with a reward that reads
            0, and a deadline of its own as `ok = True` with `is_timeout`; neither is an answer.
    """
    if not episode.ok:
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        if not errors:
            raise EpisodeFailed("UnknownError", "the episode is not ok and carries no error")
        raise EpisodeFailed(errors[-1].type, errors[-1].message)
    if episode.is_timeout or any(trace.is_timeout for trace in episode.traces):
        raise EpisodeFailed(
            "StageTimeout", "a stage ran into its verifiers deadline (env.timeout.*, env.agent.timeout.*)"
        )
    if episode_reward(episode) is None:
        raise EpisodeFailed("NotScored", "no reward was recorded (does the taskset define one?)")


async def attempt(start: Callable[[], Awaitable[vf.Episode]], seconds: float) -> vf.Episode:
    """One attempt with a deadline that holds even when the episode ignores its cancellation.

    Raises:
        EpisodeFailed: the attempt raised, hung or does not count.
    """
    task = asyncio.ensure_future(start())
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=CANCEL_GRACE_SECONDS)
            raise EpisodeFailed(
                "Hung", f"took longer than rollout.episode_seconds = {seconds:g}", abandoned=not done
            )
    finally:
        if not task.done():  # this slot itself is being cancelled
            task.cancel()
            await asyncio.wait({task}, timeout=CANCEL_GRACE_SECONDS)
    if task.cancelled():
        raise EpisodeFailed("Cancelled", "the episode was cancelled from inside")
    error = task.exception()
    if error is not None:
        raise EpisodeFailed(type(error).__name__, str(error)) from error
    episode = task.result()
    check_episode(episode)
    return episode


async def run_slot(
    start: Callable[[], Awaitable[vf.Episode]],
    *,
    version: Callable[[], int],
    seconds: float,
    retries: int,
    on_start: Callable[[int], None],
    on_failure: Callable[[EpisodeFailed], None],
) -> Outcome:
    """Runs attempts until one counts or `retries` further ones are used up.

    Args:
        start: starts one episode.
        version: current policy version.
        seconds: deadline of one attempt.
        retries: further attempts after the first.
        on_start: told the version at the start of each attempt.
        on_failure: told each failed attempt; may raise to stop the run.
    """
    errors: list[str] = []
    abandoned = 0
    outcome = Outcome(version())
    for number in range(1 + retries):
        if number:
            await asyncio.sleep(RETRY_SECONDS * 2 ** (number - 1))
        outcome = Outcome(version())
        on_start(outcome.version)
        began = time.monotonic()
        try:
            episode = await attempt(start, seconds)
            try:
                outcome.branches, outcome.counts = episode_branches(episode.traces)
            except TraceTokensError as error:
                raise EpisodeFailed("TraceTokensError", str(error)) from error
            outcome.episode = episode
        except EpisodeFailed as failure:
            errors.append(failure.kind)
            abandoned += failure.abandoned
            logger.warning("episode failed (attempt %d of %d): %s", number + 1, 1 + retries, failure)
            on_failure(failure)
        outcome.seconds = time.monotonic() - began
        if outcome.episode is not None:
            break
    outcome.errors, outcome.abandoned = errors, abandoned
    return outcome
