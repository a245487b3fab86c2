"""Tables calculated by hand from the rules of c10/cuda/CUDACachingAllocator.cpp."""

import random

import pytest

from lorafit.memory.allocator import AllocatorOutOfMemoryError, Block, CachingAllocator
from lorafit.units import KIB, MIB


def allocate(allocator: CachingAllocator, num_bytes: int) -> Block:
    block = allocator.allocate(num_bytes)
    assert block is not None
    return block


@pytest.mark.parametrize(
    ("requested", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        # 11 MiB go to a 12 MiB segment; 1 MiB is left, too little to be split off.
        (11 * MIB, 12 * MIB, 12 * MIB),
        (11 * MIB - 512, 11 * MIB - 512, 12 * MIB),
    ],
)
def test_first_request_takes_the_block_and_segment_of_its_size_class(
    requested: int, allocated: int, reserved: int
) -> None:
    allocator = CachingAllocator()
    allocator.allocate(requested)
    assert allocator.stats().allocated_bytes == allocated
    assert allocator.stats().reserved_bytes == reserved


def test_request_for_nothing_takes_nothing() -> None:
    allocator = CachingAllocator()
    assert allocator.allocate(0) is None
    assert allocator.stats().reserved_bytes == 0


def test_small_blocks_share_a_segment_and_large_ones_never_use_it() -> None:
    allocator = CachingAllocator()
    for _ in range(4):
        allocator.allocate(512 * KIB)
    assert allocator.stats().reserved_bytes == 2 * MIB
    allocator.allocate(512)
    assert allocator.stats().reserved_bytes == 4 * MIB
    allocator.allocate(2 * MIB)
    assert allocator.stats().reserved_bytes == 24 * MIB


def test_smallest_free_block_that_holds_the_request_is_taken() -> None:
    allocator = CachingAllocator()
    large, small = allocate(allocator, 64 * MIB), allocate(allocator, 32 * MIB)
    small_address = small.address
    allocator.free(large)
    allocator.free(small)
    assert allocate(allocator, 30 * MIB).address == small_address


def test_lowest_address_wins_among_equal_blocks_and_new_segments_lie_lower() -> None:
    allocator = CachingAllocator()
    first, second = allocate(allocator, 16 * MIB), allocate(allocator, 16 * MIB)
    assert second.address < first.address
    lower = second.address
    allocator.free(first)
    allocator.free(second)
    assert allocate(allocator, 16 * MIB).address == lower


def test_freed_neighbours_merge_so_that_a_larger_request_fits_without_a_segment() -> None:
    allocator = CachingAllocator()
    blocks = [allocate(allocator, 5 * MIB) for _ in range(4)]  # one 20 MiB segment
    assert allocator.stats().reserved_bytes == 20 * MIB
    allocator.free(blocks[0])
    allocator.free(blocks[2])
    assert allocator.stats().inactive_split_bytes == 10 * MIB
    allocator.allocate(10 * MIB)
    assert allocator.stats().reserved_bytes == 30 * MIB
    allocator.free(blocks[1])
    allocator.allocate(15 * MIB)
    assert allocator.stats().reserved_bytes == 30 * MIB


def test_rest_of_a_large_block_up_to_a_mebibyte_is_not_split_off() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(20 * MIB))
    allocator.allocate(19 * MIB)
    assert allocator.stats().allocated_bytes == 20 * MIB


def test_full_device_gives_back_whole_free_segments_and_tries_again() -> None:
    allocator = CachingAllocator(capacity_bytes=40 * MIB)
    allocator.free(allocator.allocate(24 * MIB))
    allocator.allocate(32 * MIB)
    stats = allocator.stats()
    assert stats.reserved_bytes == 32 * MIB
    assert stats.num_alloc_retries == 1


def test_segment_that_is_partly_in_use_is_not_given_back() -> None:
    allocator = CachingAllocator(capacity_bytes=40 * MIB)
    first = allocator.allocate(4 * MIB)  # in a 20 MiB segment
    with pytest.raises(AllocatorOutOfMemoryError) as failure:
        allocator.allocate(32 * MIB)
    assert failure.value.requested_bytes == 32 * MIB
    assert failure.value.reserved_bytes == 20 * MIB
    allocator.free(first)
    allocator.allocate(32 * MIB)
    assert allocator.stats().reserved_bytes == 32 * MIB


def test_expandable_segments_grow_by_pages_and_waste_only_the_last_one() -> None:
    allocator = CachingAllocator(expandable_segments=True)
    allocator.allocate(30 * MIB)
    assert allocator.stats().reserved_bytes == 40 * MIB
    allocator.allocate(30 * MIB)
    assert allocator.stats().reserved_bytes == 60 * MIB
    assert allocator.stats().allocated_bytes == 60 * MIB


def test_expandable_segments_reuse_a_free_tail_together_with_new_pages() -> None:
    allocator = CachingAllocator(expandable_segments=True)
    first = allocator.allocate(40 * MIB)
    allocator.free(first)
    allocator.allocate(100 * MIB)
    assert allocator.stats().reserved_bytes == 100 * MIB


def test_expandable_segments_give_back_pages_in_the_middle() -> None:
    allocator = CachingAllocator(capacity_bytes=120 * MIB, expandable_segments=True)
    first, middle, last = (allocator.allocate(40 * MIB) for _ in range(3))
    allocator.free(middle)
    allocator.release_cached()
    assert allocator.stats().reserved_bytes == 80 * MIB
    allocator.allocate(30 * MIB)
    assert allocator.stats().reserved_bytes == 120 * MIB
    allocator.free(first)
    allocator.free(last)


@pytest.mark.parametrize("expandable", [False, True])
def test_random_programs_keep_the_books_and_return_to_zero(expandable: bool) -> None:
    generator = random.Random(7)
    allocator = CachingAllocator(expandable_segments=expandable)
    live: list[Block] = []
    for _ in range(3000):
        if live and generator.random() < 0.5:
            allocator.free(live.pop(generator.randrange(len(live))))
        else:
            live.append(allocate(allocator, int(2 ** generator.uniform(4, 26))))
        spans = sorted((block.address, block.size) for block in live)
        if len(spans) % 50 == 0:
            ends = [start + size for start, size in spans]
            following = [start for start, _ in spans[1:]]
            assert all(end <= start for end, start in zip(ends, following, strict=False))
        assert allocator.allocated_bytes == sum(block.size for block in live)
        assert allocator.reserved_bytes >= allocator.allocated_bytes
    for block in live:
        allocator.free(block)
    allocator.release_cached()
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (0, 0)


def test_what_one_stream_has_freed_serves_no_other() -> None:
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(32 * MIB, stream=1))
    block = allocator.allocate(32 * MIB)
    assert allocator.stats().reserved_bytes == 64 * MIB
    allocator.free(block)
    allocator.allocate(32 * MIB, stream=1)
    assert allocator.stats().reserved_bytes == 64 * MIB
    allocator.release_cached()
    assert allocator.stats().reserved_bytes == 32 * MIB
