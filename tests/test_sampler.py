"""The mixed-batch sampler: what each mode promises, and that any position can be restored."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mdmt
from mdmt._core import fail_allocation_after
from tests.philox import philox, stream_key

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**64 - 1)
quick = settings(max_examples=60, deadline=None)


def epoch_of(sampler, epoch=0):
    sampler.set_epoch(epoch)
    return list(sampler)


def counts(batches, sets):
    """(steps, sets): samples of each data set in each batch."""
    return np.array([np.bincount(d, minlength=sets) for d, _ in batches])


def seen(batches, data_set, size):
    """How often each sample of a data set came."""
    index = np.concatenate([i[d == data_set] for d, i in batches])
    return np.bincount(index, minlength=size)


def test_philox_statement_has_the_published_values():
    assert philox(0, 0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    every = 2**64 - 1
    assert philox(every, every, every) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@quick
@given(SIZES, st.integers(1, 50), SEEDS, st.integers(0, 2**32 - 1))
def test_union_shows_every_sample_once_in_exact_batches(sizes, batch, seed, epoch):
    sampler = mdmt.MixedBatchSampler(sizes, batch, seed=seed)
    batches = epoch_of(sampler, epoch)
    for k, size in enumerate(sizes):
        assert (seen(batches, k, size) == 1).all()
    lengths = [len(d) for d, _ in batches]
    assert len(sampler) == len(batches) == -(-sum(sizes) // batch)
    assert lengths[:-1] == [batch] * (len(batches) - 1)
    for d, i in batches:
        assert d.dtype == i.dtype == np.int64 and d.shape == i.shape


@quick
@given(SIZES, st.integers(1, 40), SEEDS)
def test_drop_last_leaves_only_full_batches(sizes, batch, seed):
    if batch > sum(sizes):
        with pytest.raises(ValueError, match="lower the batch size"):
            mdmt.MixedBatchSampler(sizes, batch, drop_last=True, seed=seed)
        return
    full = epoch_of(mdmt.MixedBatchSampler(sizes, batch, seed=seed))
    kept = epoch_of(mdmt.MixedBatchSampler(sizes, batch, drop_last=True, seed=seed))
    assert len(kept) == sum(sizes) // batch
    for (d, i), (full_d, full_i) in zip(kept, full):
        assert (d == full_d).all() and (i == full_i).all() and len(d) == batch


@quick
@given(SIZES, st.integers(1, 33), SEEDS, st.integers(1, 30))
def test_balanced_batches_are_even_and_the_remainder_rotates(sizes, batch, seed, steps):
    sampler = mdmt.MixedBatchSampler(sizes, batch, mode="balanced", epoch=steps, seed=seed)
    table = counts(epoch_of(sampler), len(sizes))
    assert table.shape == (steps, len(sizes))
    assert (table.sum(1) == batch).all()
    assert np.ptp(table, axis=1).max() <= 1
    assert np.ptp(table.cumsum(0), axis=1).max() <= 1


@quick
@given(SIZES, st.integers(1, 33), st.data(), st.integers(1, 60))
def test_ratio_batches_keep_their_shares(sizes, batch, data, steps):
    ratio = data.draw(
        st.lists(st.floats(0.05, 20), min_size=len(sizes), max_size=len(sizes)), label="ratio"
    )
    sampler = mdmt.MixedBatchSampler(sizes, batch, mode="ratio", ratio=ratio, epoch=steps)
    batches = epoch_of(sampler)
    table = counts(batches, len(sizes))
    ideal = batch * np.array(ratio) / sum(ratio)
    assert (table.sum(1) == batch).all()
    assert np.abs(table - ideal).max() < 2
    sums = table.cumsum(0) - ideal * np.arange(1, steps + 1)[:, None]
    assert np.abs(sums).max() < 1.5
    for k, size in enumerate(sizes):  # cycled evenly, shuffled anew each time
        assert np.ptp(seen(batches, k, size)) <= 1


@quick
@given(SIZES, st.integers(1, 33), st.sampled_from(["longest", "shortest"]), st.data(), SEEDS)
def test_the_leading_data_set_is_seen_exactly_once(sizes, batch, rule, data, seed):
    ratio = data.draw(
        st.none() | st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes))
    )
    mode = "balanced" if ratio is None else "ratio"
    sampler = mdmt.MixedBatchSampler(sizes, batch, mode=mode, ratio=ratio, epoch=rule, seed=seed)
    batches = epoch_of(sampler, 3)
    lasts = np.array(sizes) / np.array(ratio or [1] * len(sizes))
    leads = np.flatnonzero(lasts == (lasts.max() if rule == "longest" else lasts.min()))
    assert any((seen(batches, k, sizes[k]) == 1).all() for k in leads)
    lengths = [len(d) for d, _ in batches]
    assert lengths[:-1] == [batch] * (len(batches) - 1) and 1 <= lengths[-1] <= batch
    for k, size in enumerate(sizes):
        assert np.ptp(seen(batches, k, size)) <= 1


@quick
@given(
    SIZES,
    st.integers(1, 20),
    st.sampled_from(["union", "balanced", "ratio"]),
    st.sampled_from(["union", "longest", "shortest", 7]),
    SEEDS,
    st.data(),
)
def test_any_position_is_restored(sizes, batch, mode, rule, seed, data):
    ratio = list(range(1, len(sizes) + 1)) if mode == "ratio" else None

    def fresh():
        return mdmt.MixedBatchSampler(sizes, batch, mode, ratio, rule, seed=seed)

    whole = epoch_of(fresh(), 5)
    stop = data.draw(st.integers(0, len(whole)), label="stop")
    first = fresh()
    first.set_epoch(5)
    running = iter(first)
    for _ in range(stop):
        next(running)
    state = json.loads(json.dumps(first.state_dict()))
    second = fresh()
    second.load_state_dict(state)
    assert second.state_dict() == state
    second.set_epoch(5)  # as a resumed loop does
    rest = list(second)
    assert len(rest) == len(whole) - stop
    for (d, i), (whole_d, whole_i) in zip(rest, whole[stop:]):
        assert (d == whole_d).all() and (i == whole_i).all()
    for step in data.draw(st.permutations(range(len(whole))), label="order"):
        d, i = second.batch(5, step)
        assert (d == whole[step][0]).all() and (i == whole[step][1]).all()


def test_iterating_starts_the_epoch_again():
    sampler = mdmt.MixedBatchSampler([9, 4], 4)
    next(iter(sampler))
    once, twice = list(sampler), list(sampler)
    assert len(once) == len(sampler) == 4
    assert all((a[1] == b[1]).all() for a, b in zip(once, twice))


def test_order_depends_on_seed_epoch_and_pass():
    def order(seed, epoch):
        sampler = mdmt.MixedBatchSampler([500], 1000, epoch=1, seed=seed)
        return tuple(epoch_of(sampler, epoch)[0][1])

    runs = [order(0, 0), order(1, 0), order(0, 1), order(2**63, 0), order(0, 2**32 - 1)]
    passes = [half for run in runs for half in (run[:500], run[500:])]
    assert all(sorted(half) == list(range(500)) for half in passes)
    assert len(set(passes)) == len(passes)
    assert order(0, 0) == runs[0]


def test_order_is_fisher_yates_with_philox():
    seed, epoch, sizes = 2**40 + 7, 12, [30, 20]
    key = stream_key(seed, 1)
    order = list(range(50))
    for i in range(49, 0, -1):
        r = philox(key, i << 8, epoch << 32)
        j = (r[0] | r[1] << 32) * (i + 1) >> 64
        order[i], order[j] = order[j], order[i]
    batches = epoch_of(mdmt.MixedBatchSampler(sizes, 50, seed=seed), epoch)
    data_set, index = batches[0]
    assert [int(i) + 30 * int(d) for d, i in zip(data_set, index)] == order


def test_union_makes_every_sample_equally_likely_everywhere():
    sampler = mdmt.MixedBatchSampler([3, 2], 5, seed=1)
    table = np.zeros((5, 5))
    epochs = 4000
    for epoch in range(epochs):
        data_set, index = sampler.batch(epoch, 0)
        table[np.arange(5), index + 3 * data_set] += 1
    chi2 = ((table - epochs / 5) ** 2 / (epochs / 5)).sum()
    assert chi2 < 45  # 16 degrees of freedom: exceeded once in 7000 by chance; the seed is fixed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([5, 0], 4), "data set 1 has no samples"),
        (([], 4), "1 to 64 data sets, not 0"),
        (([5, -2], 4), "data set 1 cannot have -2 samples"),
        (([5, 5], 0), "batch size must be at least 1 and below 2.31, not 0"),
        (([5, 5], 4, "mixed"), "unknown sampler mode 'mixed'"),
        (([5, 5], 4, "ratio"), "needs a ratio"),
        (([5, 5], 4, "union", [1, 1]), "goes with the sampler mode 'ratio'"),
        (([5, 5], 4, "ratio", [1, 0]), "ratio of data set 1 is 0"),
        (([5, 5], 4, "ratio", [1, float("nan")]), "ratio of data set 1 is nan"),
        (([5, 5], 4, "ratio", [1, 1e-11], "longest"), "batches until data set 1 is through"),
        (([5, 5], 4, "ratio", [1, 1e-300]), "ratio of data set 1 is too small"),
        (([5, 5], 4, "ratio", [1e308, 1e308]), "too small beside the others: its share is 0"),
        (([5, 5], 2**40), "below 2.31, not 1099511627776"),
        (([5, 5], 4, "union", None, 2**40), "below 2.31, not 1099511627776"),
        (([5, 5], 4, "ratio", [1, 1, 1]), "2 data sets need as many numbers, not 3"),
        (([5, 5], 4, "union", None, "shorter"), "unknown epoch 'shorter'"),
        (([5, 5], 4, "union", None, 0), "at least 1 step and below 2.31, not 0"),
        (([5, 5], 4, "union", None, "union", False, -1), "seed must be a number from 0"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        mdmt.MixedBatchSampler(*arguments)
    assert "\n" not in str(error.value)


def test_a_state_of_another_sampler_is_refused():
    state = mdmt.MixedBatchSampler([5, 5], 4).state_dict()
    with pytest.raises(ValueError, match=r"saved with sizes = \[5, 5\], but this sampler has"):
        mdmt.MixedBatchSampler([5, 6], 4).load_state_dict(state)
    with pytest.raises(ValueError, match="stands at batch 9 of 3"):
        mdmt.MixedBatchSampler([5, 5], 4).load_state_dict({**state, "position": 9})


def test_every_failing_allocation_is_a_memory_error():
    for site in range(4):
        fail_allocation_after(site)
        try:
            with pytest.raises(MemoryError, match="out of memory"):
                mdmt.MixedBatchSampler([5, 6, 7], 4, mode="balanced")
        finally:
            fail_allocation_after(-1)
    assert len(mdmt.MixedBatchSampler([5, 6, 7], 4, mode="balanced")) == 5


def test_batches_outside_the_epoch_are_refused():
    with pytest.raises(ValueError, match="no batch 3 of epoch 0: an epoch has 3 batches"):
        mdmt.MixedBatchSampler([5, 5], 4).batch(0, 3)
