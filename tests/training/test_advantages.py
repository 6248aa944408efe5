"""Group advantages against values worked by hand and against numpy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.advantages import GroupDrop, group_advantages

rewards = st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=1, max_size=12)


def test_worked_by_hand():
    result = group_advantages([1.0, 0.0, None, 0.0])
    assert result.advantages_G == pytest.approx((2 / 3, -1 / 3, None, -1 / 3))
    assert (result.drop, result.valid) == (None, 3)
    assert result.mean == pytest.approx(1 / 3)
    assert result.std == pytest.approx(math.sqrt(2) / 3)


def test_leave_one_out_by_hand():
    result = group_advantages([1.0, 0.0, None, 0.0], leave_one_out=True)
    # Each against the mean of the other two: 1 - 0, 0 - 1/2, 0 - 1/2.
    assert result.advantages_G == pytest.approx((1.0, -0.5, None, -0.5))


def test_scaling_by_hand():
    result = group_advantages([3.0, 1.0], scale_by_std=True)
    assert result.advantages_G == pytest.approx((1.0, -1.0), abs=1e-5)


def test_an_invalid_episode_does_not_move_the_mean():
    with_failure = group_advantages([1.0, 0.0, None])
    without = group_advantages([1.0, 0.0])
    as_zero = group_advantages([1.0, 0.0, 0.0])
    assert with_failure.advantages_G[:2] == without.advantages_G
    assert with_failure.advantages_G[:2] != as_zero.advantages_G[:2]


@pytest.mark.parametrize(
    ("group", "drop"),
    [
        ([], GroupDrop.TOO_FEW_VALID),
        ([None, None], GroupDrop.TOO_FEW_VALID),
        ([1.0, None], GroupDrop.TOO_FEW_VALID),
        ([1.0, 1.0, None], GroupDrop.NO_SIGNAL),
        ([0.1 + 0.2, 0.3], GroupDrop.NO_SIGNAL),
    ],
)
def test_groups_without_signal_are_dropped_by_name(group, drop):
    result = group_advantages(group)
    assert result.drop is drop
    assert result.advantages_G == (None,) * len(group)


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_an_error(reward):
    with pytest.raises(ValueError, match="finite"):
        group_advantages([0.0, reward])


@given(rewards, st.booleans(), st.booleans())
@settings(deadline=None)
def test_against_numpy(group, scale_by_std, leave_one_out):
    result = group_advantages(group, scale_by_std=scale_by_std, leave_one_out=leave_one_out)
    valid = np.array([r for r in group if r is not None], dtype=float)
    if result.drop is not None:
        assert len(valid) < 2 or np.ptp(valid) < 1e-9
        return
    expected = []
    for i, reward in enumerate(valid):
        baseline = np.delete(valid, i).mean() if leave_one_out else valid.mean()
        expected.append((reward - baseline) / (valid.std() + 1e-6 if scale_by_std else 1.0))
    got = [a for a in result.advantages_G if a is not None]
    # Nearly equal rewards far from 0, over a deviation of 1e-6, leave eight digits of their difference.
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-8)
    assert [a is None for a in result.advantages_G] == [r is None for r in group]
