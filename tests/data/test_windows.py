"""The windows of batch t depend on (seed, t) only, and each epoch covers the text."""

import itertools
import re
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlab.data import windows
from gptlab.data.tokens import Split
from gptlab.data.windows import Windows, permute, validation_starts, windows_at, yardstick
from gptlab.errors import BadInputError
from gptlab.terminal.text import plural

round_keys = st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6)


def numbered(count: int) -> np.ndarray:
    """Tokens whose values are their positions."""
    return np.arange(count, dtype=np.uint16)


def split_of(count: int, sha256: str = "aa") -> Split:
    return Split(numbered(count), size=4 * count, sha256=sha256)


def starts_of(order: Windows, steps: int) -> list[int]:
    return [start for step in range(steps) for start in order.starts(step).tolist()]


# --- The order ---


@given(size=st.integers(1, 5000), keys=round_keys)
def test_permutation_is_a_bijection(size: int, keys: list[int]):
    assert np.sort(permute(np.arange(size, dtype=np.uint64), size, keys)).tolist() == list(range(size))


@pytest.mark.parametrize("size", range(1, 70))
def test_permutation_of_a_small_range_is_a_bijection(size: int):
    for seed in range(5):
        keys = windows._epoch_keys(seed, 0)[1:]
        assert sorted(permute(np.arange(size, dtype=np.uint64), size, keys).tolist()) == list(range(size))


@given(size=st.integers(2**13, 2**50), keys=round_keys, first=st.integers(0, 2**12))
def test_permutation_of_a_huge_range_is_injective_and_in_range(size: int, keys: list[int], first: int):
    result = permute(np.arange(first, first + 500, dtype=np.uint64), size, keys)
    assert len(np.unique(result)) == 500
    assert result.max() < size


def test_permutation_depends_on_every_key():
    indices = np.arange(100, dtype=np.uint64)
    orders = [permute(indices, 100, [0] * 6)]
    for position in range(6):
        keys = [0] * 6
        keys[position] = 1 << 40
        orders.append(permute(indices, 100, keys))
    assert len({tuple(order.tolist()) for order in orders}) == 7


def test_permutation_does_not_modify_its_argument():
    indices = np.arange(100, dtype=np.uint64)
    permute(indices, 100, list(range(6)))
    assert indices.tolist() == list(range(100))


@pytest.mark.parametrize("seed", range(4))
def test_order_is_not_correlated_with_the_text(seed: int):
    order = permute(np.arange(5000, dtype=np.uint64), 5000, windows._epoch_keys(seed, 0)[1:]).astype(float)
    assert abs(np.corrcoef(order, np.arange(5000))[0, 1]) < 0.05
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05
    assert (np.diff(order) == 1).mean() < 0.01


# --- Epochs ---


@pytest.mark.slow
@given(
    sequence_length=st.integers(1, 20), more=st.integers(0, 400), batch_size=st.integers(1, 7), seed=st.integers(0, 9)
)
def test_every_epoch_visits_each_window_once(sequence_length: int, more: int, batch_size: int, seed: int):
    T, N = sequence_length, 2 * sequence_length + more
    order = Windows(numbered(N), T, batch_size, seed)
    assert order.per_epoch == (N - T) // T
    starts = starts_of(order, order.per_epoch)  # batch_size epochs
    for epoch in range(batch_size):
        visited = sorted(starts[epoch * order.per_epoch : (epoch + 1) * order.per_epoch])
        assert visited == list(range(visited[0], visited[0] + order.per_epoch * T, T)), "adjacent"
        assert 0 <= visited[0] < T, "the phase is less than a window"
        assert visited[-1] + T < N, "the last target exists"


def test_phase_differs_between_epochs():
    order = Windows(numbered(2000), 100, 1, 0)
    phases = {min(order.starts(step)[0] for step in range(19 * epoch, 19 * (epoch + 1))) for epoch in range(20)}
    assert len(phases) > 10


def test_order_differs_between_epochs_and_seeds():
    orders = {
        tuple(
            start // 10 for start in starts_of(Windows(numbered(1000), 10, 99, seed), 3)[99 * epoch : 99 * epoch + 99]
        )
        for seed in (0, 1, 2, 2**63 - 1)
        for epoch in range(3)
    }
    assert len(orders) == 12


def test_batch_may_contain_windows_of_two_epochs():
    one, three = Windows(numbered(100), 10, 1, 5), Windows(numbered(100), 10, 6, 5)  # 9 windows per epoch
    assert starts_of(three, 6) == starts_of(one, 36)


def test_batch_may_be_larger_than_the_text():
    order = Windows(numbered(30), 10, 7, 0)  # 2 windows per epoch
    assert order.batch(0).shape == (7, 11)
    assert starts_of(order, 2) == starts_of(Windows(numbered(30), 10, 1, 0), 14)


# --- Purity ---


def test_batch_depends_on_seed_and_step_only():
    expected = [Windows(numbered(500), 10, 4, 3).batch(step) for step in range(150)]
    one = Windows(numbered(500), 10, 4, 3)
    for step in itertools.chain(reversed(range(150)), [7, 7, 39, 0]):
        for others in (
            Windows(numbered(500), 10, 4, 4),
            Windows(numbered(500), 10, 3, 3),
            Windows(numbered(510), 10, 4, 3),
        ):
            others.batch(step)
        assert (one.batch(step) == expected[step]).all()
    windows._block_starts.cache_clear()
    assert (one.batch(20) == expected[20]).all()


def test_batch_has_one_token_more_than_the_sequence_length():
    order = Windows(numbered(500), 10, 4, 0)
    batch = order.batch(11)
    assert batch.dtype == np.int64
    assert (batch == order.starts(11)[:, None] + np.arange(11)).all()


def test_starts_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        Windows(numbered(500), 10, 4, 0).starts(11)[0] = 0


def test_batch_is_a_copy_of_the_tokens():
    tokens = numbered(500)
    Windows(tokens, 10, 4, 0).batch(0)[:] = 0
    assert (tokens == numbered(500)).all()


def test_starts_do_not_depend_on_the_tokens():
    zeros = np.zeros(500, np.uint16)
    assert starts_of(Windows(zeros, 10, 4, 3), 9) == starts_of(Windows(numbered(500), 10, 4, 3), 9)


def test_starts_of_a_late_step_are_in_range():
    starts = Windows(numbered(1000), 10, 4, 0).starts(10**8)
    assert starts.shape == (4,)
    assert starts.max() + 10 < 1000


# Existing runs have this order. The fingerprint notices a change of it.
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1000, 10, 4, 0), [[258, 178, 358, 868], [58, 98, 898, 428], [598, 378, 228, 548]]),
        ((777, 7, 3, 12345), [[709, 23, 310], [506, 163, 751], [513, 457, 716]]),
    ],
)
def test_golden_starts(arguments: tuple[int, int, int, int], expected: list[list[int]]):
    count, *rest = arguments
    order = Windows(numbered(count), *rest)
    assert [order.starts(step).tolist() for step in range(3)] == expected


def test_golden_starts_across_the_end_of_an_epoch():
    assert Windows(numbered(1000), 10, 4, 0).starts(24).tolist() == [448, 368, 168, 719]  # 99 windows per epoch


# --- Text that is too short ---


@pytest.mark.parametrize("count", [2, 9, 10, 19])
def test_training_part_that_is_too_short_is_refused(count: int):
    with pytest.raises(BadInputError) as caught:
        Windows(numbered(count), 10, 4, 0)
    message = str(caught.value)
    assert "\n" not in message
    assert f"has {plural(count, 'token')}, but sequence_length 10 needs 20" in message
    advised = re.search(r"--set train\.sequence_length=(\d+)", message)
    assert advised
    assert Windows(numbered(count), int(advised[1]), 4, 0).per_epoch >= 1, "the advice works"


@pytest.mark.parametrize("count", [0, 1])
def test_no_sequence_length_is_advised_if_none_is_short_enough(count: int):
    with pytest.raises(BadInputError, match=r"needs 20: use a longer text$"):
        Windows(numbered(count), 10, 4, 0)


def test_token_counts_have_thousands_separators():
    with pytest.raises(BadInputError, match=r"has 1,500 tokens, but sequence_length 1024 needs 2,048"):
        Windows(numbered(1500), 1024, 4, 0)


def test_shortest_text_has_one_window_per_epoch():
    order = Windows(numbered(20), 10, 3, 0)
    assert order.per_epoch == 1
    assert all(0 <= start < 10 for start in starts_of(order, 20))


@pytest.mark.parametrize("count", [0, 1, 10])
def test_validation_part_that_is_too_short_is_refused(count: int):
    with pytest.raises(BadInputError) as caught:
        validation_starts(split_of(count), 10, 4)
    assert f"has {plural(count, 'token')}, but sequence_length 10 needs 11" in str(caught.value)
    assert "data.val_fraction" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- Validation ---


@given(count=st.integers(2, 3000), sequence_length=st.integers(1, 50), wanted=st.integers(1, 100))
def test_validation_windows_are_evenly_spaced_and_do_not_overlap(count: int, sequence_length: int, wanted: int):
    sequence_length = min(sequence_length, count - 1)
    starts = validation_starts(split_of(count), sequence_length, wanted)
    available = (count - 1) // sequence_length
    assert len(starts) == min(wanted, available)
    assert starts[0] == 0
    assert starts[-1] + sequence_length < count
    gaps = np.diff(starts) // sequence_length
    assert (np.diff(starts) % sequence_length == 0).all()
    assert len(gaps) == 0 or 1 <= gaps.min() <= gaps.max() <= gaps.min() + 1
    assert available - starts[-1] // sequence_length <= -(-available // len(starts)), "the last one is near the end"


@pytest.mark.parametrize("wanted", [None, 9, 10, 10**6])
def test_all_validation_windows_are_adjacent(wanted: int | None):
    assert validation_starts(split_of(100), 10, wanted).tolist() == list(range(0, 90, 10))


def test_adjacent_windows_predict_each_token_once():
    val = split_of(101)
    targets = windows_at(val.tokens, validation_starts(val, 10, None), 10)[:, 1:]
    assert targets.flatten().tolist() == list(range(1, 101))


# --- The yardstick ---


def test_yardstick_of_the_same_windows_is_the_same():
    starts = validation_starts(split_of(1000), 10, 5)
    assert re.fullmatch(r"[0-9a-f]{8}", yardstick(split_of(1000), starts, 10))
    assert yardstick(split_of(1000), starts, 10) == yardstick(split_of(1000), starts.copy(), 10)


@pytest.mark.parametrize(
    "other",
    [
        lambda val, starts: yardstick(split_of(1000, "bb"), starts, 10),
        lambda val, starts: yardstick(val, starts[:-1], 10),
        lambda val, starts: yardstick(val, starts + 1, 10),
        lambda val, starts: yardstick(val, starts, 11),
    ],
    ids=["text", "number of windows", "positions of windows", "sequence length"],
)
def test_yardstick_changes_with_what_is_measured(other: Callable[..., str]):
    val, starts = split_of(1000), validation_starts(split_of(1000), 10, 5)
    assert other(val, starts) != yardstick(val, starts, 10)


# Runs store it with every validation loss: a change would make old and new losses incomparable.
def test_golden_yardstick():
    val = split_of(1000)
    assert yardstick(val, validation_starts(val, 10, 5), 10) == "b9f34de4"
