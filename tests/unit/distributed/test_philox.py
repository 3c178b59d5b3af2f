"""The one random generator, against numbers recorded when there were three: old runs must resume alike."""

import numpy as np

from medunifier_cli.data.order import SampleOrder
from medunifier_cli.distributed import draws
from medunifier_cli.model.sampling import uniforms


def in_hex(numbers: list[float]) -> list[str]:
    """Every bit of each number."""
    return [number.hex() for number in numbers]


def test_numbers_of_rows_are_pinned() -> None:
    assert in_hex(draws.uniform(7, 1, [0, 5, 2**40]).tolist()) == [
        "0x1.c3d2b13f7efedp-1", "0x1.e3544a8a98fe2p-2", "0x1.c1282e3295472p-2",
    ]  # fmt: skip


def test_numbers_of_codes_are_pinned() -> None:
    """Also for a seed that fits no signed integer: `--seed` goes up to 2^64 - 1."""
    assert in_hex(uniforms(2**63 + 11, 1, range(3, 5), 3).ravel().tolist()) == [
        "0x1.6a2f6d53669e0p-2", "0x1.8fcff36ea8941p-1", "0x1.da098b0d44a00p-9",
        "0x1.bf0598cef4529p-1", "0x1.8d01df10b148ep-2", "0x1.21636bcff1539p-1",
    ]  # fmt: skip


def test_numbers_are_the_top_53_bits_of_philox() -> None:
    """Against the raw words, as the numbers of codes were made before; 0 excluded, 1 included."""
    raw = np.random.Philox(key=5, counter=[0, 0, 4, 1]).random_raw(200)
    expected = 1.0 - (raw >> np.uint64(11)) * 2.0**-53
    assert np.array_equal(uniforms(5, 1, range(4, 5), 200)[0], expected)


def test_sample_order_is_pinned() -> None:
    assert SampleOrder(6, 9).indices(0, 12).tolist() == [4, 1, 2, 0, 3, 5, 2, 5, 0, 3, 4, 1]


def test_numbers_drawn_at_once_are_those_of_a_generator_each() -> None:
    """At both ends of what a position and a seed may be, where halves of words carry into each other."""
    positions = [0, 1, 63, 2**32 - 1, 2**32, 2**63 - 1, 2**64 - 1]
    for seed in (0, 1, 2**32 + 3, 2**64 - 1):
        one_by_one = [draws.philox(seed, 1, (position, 0, 0, 0)).random() for position in positions]
        assert draws.uniform(seed, 1, positions).tolist() == one_by_one
