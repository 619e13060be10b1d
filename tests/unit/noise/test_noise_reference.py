"""The definition itself: known answers, key encoding, and its agreement with textbook formulas in double precision."""

import hashlib

import numpy as np
import pytest

from justforward.noise import reference
from justforward.noise.reference import gaussian, noise_key, philox4x32, rademacher

# From the file kat_vectors of the Random123 distribution: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], dtype=np.uint32)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_random123_known_answers(counter, key, expected):
    k0, k1 = (int(word) for word in words(key))
    assert np.array_equal(philox4x32(words(counter), (k0, k1)), words(expected))


def test_noise_version_is_pinned_to_the_bits():
    """If this digest must change, so must NOISE_VERSION: old trajectory logs are no longer readable."""
    key = noise_key(1, 2, 3, "model.weight")
    drawn = gaussian(key, 0, 4096).tobytes() + rademacher(key, 0, 20_000).tobytes()
    assert reference.NOISE_VERSION == "philox4x32-10/box-muller/1"
    assert hashlib.sha256(drawn).hexdigest()[:16] == "fbba8e3c2567857c"


def test_noise_key_is_the_documented_hash():
    encoded = (5).to_bytes(8, "little") + (-1).to_bytes(8, "little", signed=True) + bytes(8) + "ключ".encode()
    assert noise_key(5, -1, 0, "ключ") == int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def test_noise_key_depends_on_every_part():
    keys = {
        noise_key(0, 0, 0, "w"),
        noise_key(1, 0, 0, "w"),
        noise_key(0, 1, 0, "w"),
        noise_key(0, 0, 1, "w"),
        noise_key(0, 0, 0, "v"),
    }
    assert len(keys) == 5


@pytest.mark.parametrize("numbers", [(2**63, 0, 0), (0, -(2**63) - 1, 0), (0, 0, 1.5)])
def test_noise_key_refuses_what_is_no_64_bit_integer(numbers):
    seed, step, sample = numbers
    with pytest.raises(ValueError, match="64 bits"):
        noise_key(seed, step, sample, "w")


def element_word(key: int, counter: int, k: int) -> int:
    counter_words = np.array([counter & 0xFFFFFFFF, counter >> 32, 0, 0], dtype=np.uint32)
    return int(philox4x32(counter_words, (key & 0xFFFFFFFF, key >> 32))[k])


@pytest.mark.parametrize("i", [0, 63, 64, 200, 255, 256, 70_001, 2**40 + 130])
def test_gaussian_element_is_box_muller_of_the_documented_words(i):
    key = noise_key(3, 1, 4, "w")
    block, k, lane = i // 256, i // 64 % 4, i % 64
    radius = element_word(key, 64 * block + lane, k & 2)
    angle = element_word(key, 64 * block + lane, k | 1)
    r = np.sqrt(-2 * np.log(((radius >> 1) + 0.5) / 2**31))
    low = angle & (2**30 - 1)
    q = (low - 2**30 * (low >> 29)) / 2**30
    theta = np.pi / 4 + q * np.pi / 2
    exact = r * np.sin(theta) * (-1) ** (angle >> 30 & 1) if k % 2 else r * np.cos(theta) * (-1) ** (angle >> 31)
    assert gaussian(key, i, 1)[0] == pytest.approx(exact, abs=2e-6, rel=2e-6)


@pytest.mark.parametrize("i", [0, 255, 256, 8191, 8192, 100_000, 2**40 + 777])
def test_rademacher_element_is_the_documented_bit(i):
    key = noise_key(2, 7, 1, "w")
    word = element_word(key, 64 * (i // 8192) + i % 64, i // 64 % 4)
    assert rademacher(key, i, 1)[0] == (-1 if word >> (i // 256 % 32) & 1 else 1)


@pytest.mark.parametrize("draw", [gaussian, rademacher])
@pytest.mark.parametrize(("start", "count"), [(0, 0), (1, 0), (256, 256), (63, 2), (8190, 5), (5, 20_000)])
def test_a_range_is_a_slice_of_the_whole(draw, start, count):
    drawn = draw(9, start, count)
    assert drawn.dtype == np.float32
    assert np.array_equal(drawn, draw(9, 0, start + count)[start:])


def test_extreme_words_stay_finite():
    extremes = np.array([0, 1, 2**31, 2**32 - 2, 2**32 - 1], dtype=np.uint32)
    radius, angle = (a.ravel() for a in np.meshgrid(extremes, extremes))
    z = np.stack(reference._box_muller(radius, angle))
    assert np.isfinite(z).all()
    assert 6.5 < np.hypot(*z).max() < 6.7
