"""The statistics against values worked out by hand or by an independent formula."""

import math
import random

import pytest

from eval.stats import efficiency_ratio, length_bin, mean_ci, paired_difference, spread


def test_mean_of_two_tasks_by_hand() -> None:
    # Draws of two tasks with replacement: means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4, so the 2.5 % and
    # 97.5 % points of 10,000 of them are 0 and 1.
    estimate = mean_ci({"a": [0.0], "b": [1.0]})
    assert estimate is not None
    assert (estimate.mean, estimate.low, estimate.high) == (0.5, 0.0, 1.0)
    assert (estimate.tasks, estimate.episodes) == (2, 2)


def test_mean_weighs_episodes() -> None:
    estimate = mean_ci({"a": [1.0, 1.0, 1.0], "b": [0.0]})
    assert estimate is not None
    assert estimate.mean == 0.75
    assert estimate.episodes == 4


def test_one_task_has_no_interval_and_none_no_mean() -> None:
    one = mean_ci({"a": [1.0, 0.0]})
    assert one is not None
    assert (one.mean, one.low, one.high) == (0.5, None, None)
    assert mean_ci({}) is None
    assert mean_ci({"a": []}) is None


def test_interval_is_that_of_the_normal_approximation_for_many_tasks() -> None:
    generator = random.Random(3)
    values = {str(i): [float(generator.random() < 0.3)] for i in range(800)}
    estimate = mean_ci(values)
    assert estimate is not None
    error = 1.96 * math.sqrt(estimate.mean * (1 - estimate.mean) / 800)
    assert estimate.low == pytest.approx(estimate.mean - error, abs=0.003)
    assert estimate.high == pytest.approx(estimate.mean + error, abs=0.003)


def test_episodes_of_a_task_are_not_independent_evidence() -> None:
    generator = random.Random(4)
    once = {str(i): [generator.random()] for i in range(60)}
    ten_times = {task: values * 10 for task, values in once.items()}
    a, b = mean_ci(once), mean_ci(ten_times)
    assert a is not None
    assert b is not None
    assert (b.low, b.high) == (pytest.approx(a.low), pytest.approx(a.high))


def test_intervals_are_reproducible_and_independent_of_order() -> None:
    values = {str(i): [math.sqrt(i)] for i in range(40)}
    backwards = dict(reversed(values.items()))
    assert mean_ci(values, seed=1) == mean_ci(backwards, seed=1)
    assert mean_ci(values, seed=1) != mean_ci(values, seed=2)


def test_chunked_resampling_gives_the_same_as_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    import eval.stats

    values = {str(i): [float(i % 7)] for i in range(30)}
    whole = mean_ci(values, resamples=1000)
    monkeypatch.setattr(eval.stats, "_CHUNK_CELLS", 30 * 7)
    assert mean_ci(values, resamples=1000) == whole


def test_a_missing_score_is_refused() -> None:
    with pytest.raises(ValueError, match="leave unscored episodes out"):
        mean_ci({"a": [float("nan")], "b": [1.0]})


def test_paired_difference_by_hand() -> None:
    a = {"1": [0.0], "2": [1.0], "3": [0.0, 1.0], "only-a": [1.0]}
    b = {"1": [1.0], "2": [1.0], "3": [0.0], "only-b": [0.0]}
    paired = paired_difference(a, b)
    assert paired is not None
    # (1 - 0 + 1 - 1 + 0 - 1/2) / 3
    assert paired.difference == pytest.approx(0.5 / 3)
    assert (paired.tasks, paired.wins, paired.ties, paired.losses) == (3, 1, 1, 1)


def test_a_constant_difference_has_a_sharp_interval_however_tasks_differ() -> None:
    generator = random.Random(5)
    a = {str(i): [generator.random()] for i in range(50)}
    b = {task: [values[0] + 0.1] for task, values in a.items()}
    paired = paired_difference(a, b)
    assert paired is not None
    assert (paired.low, paired.high) == (pytest.approx(0.1), pytest.approx(0.1))
    unpaired = mean_ci(a)
    assert unpaired is not None
    assert unpaired.high is not None
    assert unpaired.low is not None
    assert unpaired.high - unpaired.low > 0.1  # what the pairing has removed


def test_nothing_in_common_is_no_difference() -> None:
    assert paired_difference({"a": [1.0]}, {"b": [1.0]}) is None


def test_efficiency_by_hand() -> None:
    # Common tasks 1 and 2. a: value 1, cost 100 a task; b: (1 + 0.5) for (20 + 30), episodes averaged first.
    a = {"1": [(1.0, 100.0)], "2": [(1.0, 100.0)], "only-a": [(0.0, 1e6)]}
    b = {"1": [(1.0, 10.0), (1.0, 30.0)], "2": [(0.5, 30.0)], "only-b": [(1.0, 1.0)]}
    found = efficiency_ratio(a, b)
    assert found is not None
    assert found.ratio == pytest.approx((1.5 / 50) / (2 / 200))
    assert found.tasks == 2
    # Draws of two tasks: (1,1), (1,2), (2,2); their ratios are 5, 3 and 5/3.
    assert (found.low, found.high) == (pytest.approx(5 / 3), pytest.approx(5.0))


def test_efficiency_is_paired() -> None:
    """b costs half of a on every task, however much tasks differ: the interval has no width."""
    generator = random.Random(6)
    a = {str(i): [(generator.random() + 0.1, generator.lognormvariate(5, 2))] for i in range(40)}
    b = {task: [(value, cost / 2)] for task, [(value, cost)] in a.items()}
    found = efficiency_ratio(a, b)
    assert found is not None
    assert (found.ratio, found.low, found.high) == (pytest.approx(2), pytest.approx(2), pytest.approx(2))


def test_efficiency_may_be_unbounded_and_may_not_exist() -> None:
    a = {"1": [(1.0, 10.0)], **{str(i): [(0.0, 10.0)] for i in range(2, 6)}}
    b = {str(i): [(1.0, 10.0)] for i in range(1, 6)}
    found = efficiency_ratio(a, b)
    assert found is not None
    assert found.ratio == pytest.approx(5)
    assert found.low is not None
    assert 1 < found.low < 5
    assert found.high == math.inf  # a third of the resamples has no value in a
    assert efficiency_ratio({"1": [(0.0, 10.0)]}, b) is None
    assert efficiency_ratio({"9": [(1.0, 10.0)]}, b) is None
    one = efficiency_ratio({"1": [(1.0, 10.0)]}, b)
    assert one is not None
    assert (one.ratio, one.low, one.high) == (1.0, None, None)


def test_spread_by_hand() -> None:
    result = spread([10, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert result is not None
    assert (result.mean, result.median, result.max, result.total, result.n) == (5.5, 5.5, 10, 55, 10)
    assert result.p90 == pytest.approx(9.1)  # position 0.9 * 9 = 8.1 of 1..10
    assert spread([]) is None


@pytest.mark.parametrize(
    ("length", "low"),
    [(1, 1), (3.99, 1), (4, 4), (1023, 256), (1024, 1024), (4095, 1024), (4194304, 4194304)],
)
def test_length_bins_are_half_open_and_exact_at_powers(length: float, low: float) -> None:
    assert length_bin(length) == (low, 4 * low)


def test_a_length_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        length_bin(0)
