"""The order of tasks, the resume position, and the pace: by hand, and in simulations that look for
deadlock."""

from __future__ import annotations

import random

import pytest
import verifiers.v1 as vf
from hypothesis import given, settings
from hypothesis import strategies as st

from training.progress import Pace, Position, TaskOrder


def tasks(n):
    return [vf.Task(vf.TaskData(idx=i, prompt=str(i))) for i in range(n)]


def drawn(order, groups):
    return [order.task(group).data.idx for group in groups]


def test_each_pass_is_another_permutation_of_all_tasks():
    order = TaskOrder(tasks(7), bounded=True, seed=3)
    first, second = drawn(order, range(7)), drawn(order, range(7, 14))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second
    assert order.size == 7


def test_the_order_is_the_seed_s_alone():
    whole = drawn(TaskOrder(tasks(5), bounded=True, seed=1), range(20))
    late = TaskOrder(tasks(5), bounded=True, seed=1)
    assert drawn(late, range(13, 20)) == whole[13:]
    assert drawn(late, [2, 17]) == [whole[2], whole[17]]
    assert drawn(TaskOrder(tasks(5), bounded=True, seed=2), range(20)) != whole


def test_an_endless_taskset_keeps_its_own_order():
    def endless():
        number = 0
        while True:
            yield vf.Task(vf.TaskData(idx=number, prompt=""))
            number += 1

    order = TaskOrder(endless(), bounded=False, seed=1)
    assert drawn(order, [3, 1]) == [3, 1]
    order.forget(1)
    assert drawn(order, [3, 6]) == [3, 6]
    assert order.size is None


def test_no_tasks_is_an_error():
    with pytest.raises(ValueError, match="select"):
        TaskOrder([], bounded=True, seed=0)


def test_position():
    position = Position()
    for group in (1, 3, 0):
        position.done(group)
    assert (position.next_group, position.beyond) == (2, {3})
    assert [position.is_done(g) for g in range(5)] == [True, True, False, True, False]
    again = Position.from_dict(position.to_dict())
    again.done(2)
    assert again == Position(4, set())
    assert position.next_group == 2


def test_room_by_hand():
    pace = Pace(rows_per_step=8, ahead_rows=2, max_staleness=1, total_steps=3)
    # Step 0: its 8 rows, 2 fetched ahead, and 8 that may be one version old when they are used.
    assert pace.room(accepted=0, waiting=False) == 18
    assert pace.room(accepted=10, waiting=False) == 8
    pace.stepped(1, accepted=10)
    assert pace.room(accepted=10, waiting=False) == 16
    pace.stepped(2, accepted=18)
    # The last step: nothing is made that no step would use.
    assert pace.room(accepted=18, waiting=False) == 8
    assert not pace.may_start(8, accepted=18, waiting=False)
    assert pace.may_start(0, accepted=99, waiting=True)


def test_on_policy_makes_nothing_beyond_the_step():
    pace = Pace(rows_per_step=8, ahead_rows=0, max_staleness=0, total_steps=9)
    assert pace.room(accepted=5, waiting=True) == 3
    assert not pace.may_start(3, accepted=5, waiting=True)


def simulate(rng, *, rows_per_step, ahead_rows, max_staleness, steps, slots, fixed, group_rows, **more):
    """A trainer and a worker as state machines; returns (most rows old on arrival, ticks). Raises on
    deadlock.

    The worker starts groups as `Pace` allows; each takes a random time and gives a random number of rows,
    often none. The trainer takes rows as they come, drops stale ones, and steps when it has enough.
    """
    guess = rows_per_step if fixed else max(1, rows_per_step // 3)
    pace = more.get("pace_class", Pace)(guess, ahead_rows, max_staleness, steps, fixed=fixed)
    version = accepted = delivered = taken = ticks = 0
    held = 0  # rows that the trainer has for the step at hand, those fetched ahead included
    buffer, running = [], []
    expected = 4.0
    used = []
    while version < steps:
        ticks += 1
        assert ticks < 200_000, f"livelock at version {version}: {held} held, {len(buffer)} buffered"
        # trainer
        need = rows_per_step + ahead_rows
        while buffer and held < need:
            made = buffer.pop(0)
            taken += 1
            if version - made <= max_staleness:
                accepted += 1
                held += 1
                used.append(version - made)
        if held >= need:
            held -= rows_per_step
            version += 1
            continue
        waiting = not buffer
        # worker
        for job in running:
            job[0] -= 1
        for job in [job for job in running if job[0] <= 0]:
            running.remove(job)
            rows = rng.choice(group_rows)
            expected = max(0.5, 0.9 * expected + 0.1 * rows)
            delivered += rows
            buffer += [job[1]] * rows
        pace.stepped(version, accepted)
        while len(running) < slots:
            ahead = delivered - taken + len(running) * expected
            if not pace.may_start(ahead, accepted, waiting):
                break
            running.append([rng.randint(1, 30), version])
        # Exact and not a matter of time: a group may take long and give nothing many times over.
        assert running or buffer, f"deadlock at version {version}: {held} held, nothing on its way"
    return max(used), ticks


@given(
    seed=st.integers(0, 10**6),
    rows_per_step=st.integers(1, 40),
    ahead_rows=st.integers(0, 40),
    max_staleness=st.integers(0, 4),
    slots=st.integers(1, 12),
    fixed=st.booleans(),
    group_rows=st.sampled_from([[0, 4], [1], [0, 0, 0, 1], [8, 50], [0, 3, 200]]),
)
@settings(max_examples=150, deadline=None)
def test_no_deadlock(seed, rows_per_step, ahead_rows, max_staleness, slots, fixed, group_rows, **more):
    oldest, _ = simulate(
        random.Random(seed),
        rows_per_step=rows_per_step,
        ahead_rows=ahead_rows,
        max_staleness=max_staleness,
        steps=6,
        slots=slots,
        fixed=fixed,
        group_rows=group_rows,
    )
    assert oldest <= max_staleness


class Blind(Pace):
    """Ignores what the loader fetches ahead, and that the trainer waits."""

    def room(self, accepted, waiting):
        return self.rows_per_step * (self._steps + 1) - accepted

    def may_start(self, ahead, accepted, waiting):
        return ahead < self.room(accepted, waiting)


def test_the_simulation_notices_a_deadlock():
    sizes = {"rows_per_step": 8, "ahead_rows": 4, "max_staleness": 0, "steps": 3}
    with pytest.raises(AssertionError, match="deadlock"):
        simulate(random.Random(0), slots=4, fixed=True, group_rows=[1], pace_class=Blind, **sizes)
