"""Slots: nothing overflows into its neighbor, and what would is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import InputError
from protocols.paillier.packing import Slots, slots_for, whole

many = settings(max_examples=200, deadline=None)


@given(data=st.data(), bits=st.sampled_from((128, 512, 2048)), width=st.sampled_from((2, 3, 8, 40, 64, 127)))
@many
def test_pack_and_unpack(data, bits, width):
    slots = slots_for(bits, (1 << width - 1) - 1)
    assert slots.width == width and slots.width * slots.count <= bits - 1 < slots.width * (slots.count + 1)
    top = slots.limit
    values = data.draw(st.lists(st.one_of(st.sampled_from((0, 1, -1, top, -top)), st.integers(-top, top)), max_size=50))
    packed = slots.pack(values)
    assert len(packed) == -(-len(values) // slots.count)
    assert slots.unpack(packed, len(values)) == values
    assert all(abs(v) < 1 << bits - 2 for v in packed), "below half of the smallest modulus of that size"


@given(data=st.data(), weights=st.lists(st.integers(-255, 255), min_size=1, max_size=5))
@many
def test_packed_sums_and_products(data, weights):
    slots = Slots(8 + 9 + 3, 6)
    rows = [data.draw(st.lists(st.sampled_from((-255, 255, 0, 1)), min_size=6, max_size=6)) for _ in weights]
    total = sum(w * slots.pack(row)[0] for w, row in zip(weights, rows, strict=True))
    want = [sum(w * row[k] for w, row in zip(weights, rows, strict=True)) for k in range(6)]
    assert slots.unpack([total], 6) == want


def test_the_largest_values_in_every_slot():
    for bits in (128, 129, 2048, 3072):
        for width in range(2, 65):
            slots = slots_for(bits, (1 << width - 1) - 1)
            for value in (slots.limit, -slots.limit):
                packed = slots.pack([value] * slots.count)
                assert abs(packed[0]) < 1 << bits - 2 and slots.unpack(packed, slots.count) == [value] * slots.count


def test_overflow_is_refused():
    slots = slots_for(128, 127)
    for value in (slots.limit + 1, -slots.limit - 1):
        with pytest.raises(InputError, match="does not fit a slot of 8 bits"):
            slots.pack([0, value])
    full = slots.pack([slots.limit] * slots.count)[0]
    for wrong in (full + (1 << slots.width * slots.count), -full - (1 << slots.width * slots.count - 1)):
        with pytest.raises(InputError, match="does not divide into"):
            slots.unpack([wrong], 1)
    with pytest.raises(InputError, match="do not fit a key of 128 bits"):
        slots_for(128, 1 << 127)
    assert slots_for(128, whole(128).limit) == whole(128)
