import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rareloss.table import DataError, Table, load
from rareloss.table.folds import split


def table(target: np.ndarray, **roles: np.ndarray) -> Table:
    data = pd.DataFrame({"x": np.random.default_rng(0).normal(size=len(target)), "y": target, **roles})
    return load(data, target="y", **{role: role for role in roles})


seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(seed=seeds, rows=st.integers(60, 300), positives=st.integers(10, 30))
def test_rows_are_partitioned_and_stratified(seed: int, rows: int, positives: int) -> None:
    data = table(np.arange(rows) < positives)
    fold = split(data, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(fold)), np.arange(rows))
    for part, share in zip(fold, (0.6, 0.2, 0.2), strict=True):
        assert (np.diff(part) > 0).all()
        # Each class is dealt in fives, of which the last may be broken off: less than a deal off in each class.
        assert abs(len(part) - share * rows) <= 2 * 2.4
        assert abs(data.target[part].sum() - share * positives) <= 2.4


@settings(deadline=None)
@given(seed=seeds, draws=st.integers(0, 100), groups=st.integers(40, 90))
def test_no_group_straddles_two_parts(seed: int, draws: int, groups: int) -> None:
    rng = np.random.default_rng(draws)
    group = rng.integers(0, groups, size=600)
    data = table(rng.random(600) < 0.2, group=group)
    fold = split(data, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(fold)), np.arange(600))
    parts = [set(group[part]) for part in fold]
    assert sum(map(len, parts)) == len(set.union(*parts))


@settings(deadline=None)
@given(seed=seeds, moments=st.integers(50, 600))
def test_train_is_before_validation_is_before_test(seed: int, moments: int) -> None:
    rng = np.random.default_rng(moments)
    time = rng.integers(0, moments, size=600)
    fold = split(table(rng.random(600) < 0.4, time=time), seed)
    assert time[fold.train].max() < time[fold.validation].min()
    assert time[fold.validation].max() < time[fold.test].min()
    # Nothing between the first and the last row of the window is left out, so rows of one moment are together.
    window = (time >= time[fold.train].min()) & (time <= time[fold.test].max())
    assert window.sum() == sum(map(len, fold))


def test_seeds_move_the_window_over_the_whole_timeline() -> None:
    data = table(np.arange(1000) % 5 == 0, time=np.arange(1000))
    folds = [split(data, seed) for seed in range(40)]
    assert min(fold.train[0] for fold in folds) < 40
    assert max(fold.test[-1] for fold in folds) > 960
    for fold in folds:
        np.testing.assert_allclose([len(part) for part in fold], [480, 160, 160], atol=2)


def test_few_moments_are_cut_between_and_the_last_is_reached() -> None:
    time = np.repeat(np.arange(10), 100)
    data = table(np.arange(1000) % 5 == 0, time=time)
    folds = [split(data, seed) for seed in range(40)]
    assert {int(time[fold.train[0]]) for fold in folds} == {0, 1, 2}
    assert max(time[fold.test[-1]] for fold in folds) == 9
    for fold in folds:
        assert all(len(part) % 100 == 0 for part in fold)


def test_groups_of_a_later_part_are_dropped_from_an_earlier_one() -> None:
    rng = np.random.default_rng(0)
    time = np.arange(2000)
    # Cards are in use for about 300 moments.
    card = (time + rng.integers(0, 300, size=2000)) // 30
    fold = split(table(rng.random(2000) < 0.3, group=card, time=time), 0)
    parts = [set(card[part]) for part in fold]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert time[fold.train].max() < time[fold.validation].min()
    assert len(fold.test) == 320


def test_identical_rows_stay_together() -> None:
    x = np.repeat(np.arange(150.0) ** 2, 2)
    data = load(pd.DataFrame({"x": x, "y": np.arange(300) % 4 == 0}), target="y")
    for seed in range(5):
        parts = [set(x[part]) for part in split(data, seed)]
        assert sum(map(len, parts)) == 150


def test_the_same_seed_gives_the_same_fold_and_another_does_not() -> None:
    data = table(np.arange(200) < 40)
    for one, other in zip(split(data, 7), split(data, 7), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(split(data, 7).test, split(data, 8).test)


def test_every_row_is_tested_by_one_seed_in_five() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 40, size=400) ** 2 // 40
    data = table(rng.random(400) < 0.3, group=group)
    tested = np.bincount(np.concatenate([split(data, seed).test for seed in range(1000)]), minlength=400) / 1000
    # Four standard errors of a share of .2 over 1000 seeds.
    assert abs(tested - 0.2).max() < 4 * (0.2 * 0.8 / 1000) ** 0.5


def test_rows_that_stand_together_are_tested_together_as_often_as_any_others() -> None:
    data = table(np.arange(400) < 100)
    tested = np.zeros((400, 1000), dtype=bool)
    for seed in range(1000):
        tested[split(data, seed).test, seed] = True
    # Of 100 positives 20 are tested, and of 300 negatives 60: two of a class together in so many seeds.
    for rows, share in ((slice(0, 100), 20 * 19 / (100 * 99)), (slice(100, 400), 60 * 59 / (300 * 299))):
        together = (tested[rows][:-1] & tested[rows][1:]).mean(axis=1)
        assert abs(together - share).max() < 5 * (share * (1 - share) / 1000) ** 0.5


def test_every_class_is_in_every_part() -> None:
    target = np.repeat([0, 1, 2, 3], [500, 10, 13, 60])
    for seed in range(20):
        counts = [np.bincount(target[part], minlength=4) for part in split(table(target), seed)]
        assert np.min(counts) >= 2


def test_a_part_without_enough_positives_is_refused() -> None:
    # All positives lie in one group, which goes to one part.
    with pytest.raises(DataError, match=r"split by group \(group\), the \w+ part holds 0 of class 'True' among"):
        split(table(np.arange(200) < 20, group=np.arange(200) // 20), 0)
    with pytest.raises(DataError, match=r"split by time \(time\), the validation part holds 0"):
        split(table((np.arange(200) < 90) & (np.arange(200) % 2 == 0), time=np.arange(200)), 0)
