"""A replica of PyTorch's CUDA caching allocator: what a run reserves, not only what it uses.

The rules are those of c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.h (torch
2.10 to 2.14), default settings or `expandable_segments:True`:

- sizes are rounded up to 512 B; requests up to 1 MiB live in the small pool, others in the large;
- a request takes the smallest free block that holds it, the lowest address among equals;
- the rest of that block is split off if it is at least 512 B (small pool, expandable segments)
  or more than 1 MiB (large pool); otherwise the whole block counts as allocated;
- with no such block, a segment is reserved: 2 MiB for the small pool, 20 MiB for requests under
  10 MiB, else the request rounded up to 2 MiB. The driver hands out descending addresses;
- a freed block merges with free neighbours of its segment; segments are kept until the device is
  full, when all that are wholly free are given back and the request is tried once more;
- every stream has pools of its own: what one has freed serves no other.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

from lorafit.units import MIB

MIN_BLOCK_BYTES = 512
SMALL_LIMIT_BYTES = MIB
SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB
MIN_OWN_SEGMENT_BYTES = 10 * MIB
SEGMENT_ROUNDING_BYTES = 2 * MIB

_TOP_ADDRESS = 1 << 47
_EXPANDABLE_BYTES = 200_000 * LARGE_SEGMENT_BYTES  # more than any device has


class AllocatorOutOfMemoryError(Exception):
    """The replica could not serve a request within its capacity.

    Attributes:
        requested_bytes: size of the request.
        allocated_bytes: bytes in use at that time.
        reserved_bytes: bytes reserved at that time, after cached segments were given back.
    """

    def __init__(self, requested_bytes: int, allocated_bytes: int, reserved_bytes: int) -> None:
        super().__init__(
            f"{requested_bytes} bytes requested with {allocated_bytes} in use and "
            f"{reserved_bytes} reserved"
        )
        self.requested_bytes = requested_bytes
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes


class Block:
    """A piece of a segment: in use, free, or (expandable segments) not mapped to memory."""

    __slots__ = ("address", "allocated", "mapped", "next", "pool", "previous", "size")

    def __init__(self, address: int, size: int, pool: "_Pool", mapped: bool = True) -> None:
        self.address = address
        self.size = size
        self.pool = pool
        self.mapped = mapped
        self.allocated = False
        self.previous: Block | None = None
        self.next: Block | None = None

    @property
    def is_split(self) -> bool:
        """Whether its segment holds other blocks too."""
        return self.previous is not None or self.next is not None


class _Pool:
    """Free blocks of one size class, sorted by size, then address."""

    __slots__ = ("blocks", "is_small", "keys", "unmapped")

    def __init__(self, is_small: bool) -> None:
        self.is_small = is_small
        self.keys: list[tuple[int, int]] = []
        self.blocks: dict[int, Block] = {}
        self.unmapped: dict[int, Block] = {}

    @property
    def page_bytes(self) -> int:
        return SMALL_SEGMENT_BYTES if self.is_small else LARGE_SEGMENT_BYTES

    def insert(self, block: Block) -> None:
        insort(self.keys, (block.size, block.address))
        self.blocks[block.address] = block

    def remove(self, block: Block) -> None:
        del self.keys[bisect_left(self.keys, (block.size, block.address))]
        del self.blocks[block.address]


@dataclass(frozen=True)
class AllocatorStats:
    """Counters with the meaning of `torch.cuda.memory_stats`."""

    allocated_bytes: int
    reserved_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    inactive_split_bytes: int
    """Free bytes in segments that are partly in use: they cannot be given back."""
    num_alloc_retries: int
    """How often cached segments were given back because the device was full."""


class CachingAllocator:
    """The caching allocator of one CUDA device.

    Args:
        capacity_bytes: the most it may reserve; None for no limit.
        expandable_segments: as `PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`.
    """

    def __init__(
        self, capacity_bytes: int | None = None, *, expandable_segments: bool = False
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.expandable_segments = expandable_segments
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.peak_allocated_bytes = 0
        self.peak_reserved_bytes = 0
        self.num_alloc_retries = 0
        self._pools: dict[int, tuple[_Pool, _Pool]] = {}
        self._next_address = _TOP_ADDRESS

    def allocate(self, num_bytes: int, stream: int = 0) -> Block | None:
        """Return a block of at least `num_bytes`; None for 0, which takes no memory.

        Args:
            num_bytes: bytes that are asked for.
            stream: the stream that asks; 0 is the one that computes.

        Raises:
            AllocatorOutOfMemoryError: the capacity is reached, even with nothing cached.
        """
        if num_bytes == 0:
            return None
        size = -(-num_bytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES
        small, large = self._pools_of(stream)
        pool = small if size <= SMALL_LIMIT_BYTES else large
        block = self._find_free(pool, size) or self._reserve(pool, size)
        if block is None:
            self.num_alloc_retries += 1
            self.release_cached()
            block = self._reserve(pool, size)
            if block is None:
                raise AllocatorOutOfMemoryError(
                    num_bytes, self.allocated_bytes, self.reserved_bytes
                )
        if self._should_split(block, size):
            self._split(block, size)
        block.allocated = True
        self.allocated_bytes += block.size
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        return block

    def free(self, block: Block | None) -> None:
        """Give a block back to its pool, merged with free neighbours."""
        if block is None:
            return
        assert block.allocated, "a block is freed once"
        block.allocated = False
        self.allocated_bytes -= block.size
        self._merge_and_insert(block)

    def release_cached(self) -> None:
        """Give every wholly free segment back to the driver, as `torch.cuda.empty_cache`."""
        for pool in [pool for small, large in self._pools.values() for pool in (large, small)]:
            for block in list(pool.blocks.values()):
                if self.expandable_segments:
                    self._unmap(block)
                elif not block.is_split:
                    pool.remove(block)
                    self.reserved_bytes -= block.size

    def stats(self) -> AllocatorStats:
        """Return the counters."""
        return AllocatorStats(
            self.allocated_bytes,
            self.reserved_bytes,
            self.peak_allocated_bytes,
            self.peak_reserved_bytes,
            self._inactive_split_bytes(),
            self.num_alloc_retries,
        )

    def _pools_of(self, stream: int) -> tuple[_Pool, _Pool]:
        """Return the stream's pools of small and of large blocks."""
        if stream not in self._pools:
            self._pools[stream] = _Pool(is_small=True), _Pool(is_small=False)
        return self._pools[stream]

    def _inactive_split_bytes(self) -> int:
        if self.expandable_segments:
            return 0
        pools = [pool for pair in self._pools.values() for pool in pair]
        free = [block for pool in pools for block in pool.blocks.values()]
        return sum(block.size for block in free if block.is_split)

    def _find_free(self, pool: _Pool, size: int) -> Block | None:
        index = bisect_left(pool.keys, (size, 0))
        if index == len(pool.keys):
            return None
        block = pool.blocks[pool.keys[index][1]]
        if self.expandable_segments:
            # A block that could still grow counts with the size it may grow to, so a block
            # that cannot is the better fit.
            while block.is_split and index + 1 < len(pool.keys):
                following = pool.blocks[pool.keys[index + 1][1]]
                if _growable_size(following) >= _growable_size(block):
                    break
                block, index = following, index + 1
        pool.remove(block)
        return block

    def _should_split(self, block: Block, size: int) -> bool:
        rest = block.size - size
        if block.pool.is_small or self.expandable_segments:
            return rest >= MIN_BLOCK_BYTES
        return rest > SMALL_LIMIT_BYTES

    def _split(self, block: Block, size: int) -> None:
        """Cut `block` to `size` and give the rest back to the pool."""
        rest = self._cut(block, size)
        block.pool.insert(rest)

    def _cut(self, block: Block, size: int) -> Block:
        rest = Block(block.address + size, block.size - size, block.pool, block.mapped)
        rest.previous, rest.next = block, block.next
        if rest.next is not None:
            rest.next.previous = rest
        block.next = rest
        block.size = size
        return rest

    def _reserve(self, pool: _Pool, size: int) -> Block | None:
        if self.expandable_segments:
            return self._reserve_expandable(pool, size)
        if size <= SMALL_LIMIT_BYTES:
            segment = SMALL_SEGMENT_BYTES
        elif size < MIN_OWN_SEGMENT_BYTES:
            segment = LARGE_SEGMENT_BYTES
        else:
            segment = -(-size // SEGMENT_ROUNDING_BYTES) * SEGMENT_ROUNDING_BYTES
        if not self._take_from_device(segment):
            return None
        self._next_address -= segment
        return Block(self._next_address, segment, pool)

    def _take_from_device(self, num_bytes: int) -> bool:
        limit = self.capacity_bytes
        if limit is not None and self.reserved_bytes + num_bytes > limit:
            return False
        self.reserved_bytes += num_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return True

    def _merge_and_insert(self, block: Block) -> Block:
        """Merge a free block with free neighbours of its kind; insert the result, return it."""
        pool, previous, following = block.pool, block.previous, block.next
        if _can_merge(block, previous):
            assert previous is not None
            pool.remove(previous)
            block.address = previous.address
            block.size += previous.size
            block.previous = previous.previous
            if block.previous is not None:
                block.previous.next = block
        if _can_merge(block, following):
            assert following is not None
            pool.remove(following)
            block.size += following.size
            block.next = following.next
            if block.next is not None:
                block.next.previous = block
        pool.insert(block)
        return block

    # -- Expandable segments: one range of addresses a pool, mapped in pages

    def _reserve_expandable(self, pool: _Pool, size: int) -> Block | None:
        candidate = self._find_expandable(pool, size)
        if not candidate.mapped:
            mapped = self._map(candidate, min(candidate.size, size))
            if mapped is None:
                return None
            candidate = mapped
        while candidate.size < size:
            following = candidate.next
            assert following is not None
            mapped = self._map(following, min(size - candidate.size, following.size))
            if mapped is None:
                return None
            candidate = mapped
        pool.remove(candidate)
        return candidate

    def _find_expandable(self, pool: _Pool, size: int) -> Block:
        for address in sorted(pool.unmapped):
            block = pool.unmapped[address]
            previous = block.previous
            start = previous if previous is not None and not previous.allocated else block
            room, piece = 0, start
            while piece is not None and not piece.allocated and room < size:
                room += piece.size
                piece = piece.next  # type: ignore[assignment]  # the loop ends at None
            if room >= size:
                return start
        # Pages are counted from the start of the range: align it, so that they are multiples.
        lowest = self._next_address - _EXPANDABLE_BYTES
        self._next_address = lowest // LARGE_SEGMENT_BYTES * LARGE_SEGMENT_BYTES
        block = Block(self._next_address, _EXPANDABLE_BYTES, pool, mapped=False)
        pool.unmapped[block.address] = block
        return block

    def _map(self, block: Block, size: int) -> Block | None:
        """Map the first pages of an unmapped block; None when the device is full."""
        pool = block.pool
        size = min(-(-size // pool.page_bytes) * pool.page_bytes, block.size)
        if not self._take_from_device(size):
            return None
        del pool.unmapped[block.address]
        if size < block.size:
            rest = self._cut(block, size)
            pool.unmapped[rest.address] = rest
        block.mapped = True
        return self._merge_and_insert(block)

    def _unmap(self, block: Block) -> None:
        """Give the whole pages inside a free block back to the device."""
        pool = block.pool
        page = pool.page_bytes
        begin = -(-block.address // page) * page
        end = (block.address + block.size) // page * page
        if end <= begin:
            return
        pool.remove(block)
        if block.address + block.size > end:
            pool.insert(self._cut(block, end - block.address))
        if block.address < begin:
            middle = self._cut(block, begin - block.address)
            pool.insert(block)
            block = middle
        self.reserved_bytes -= block.size
        block.mapped = False
        self._merge_unmapped(block)

    def _merge_unmapped(self, block: Block) -> None:
        pool = block.pool
        if _can_merge(block, block.previous):
            assert block.previous is not None
            previous = block.previous
            del pool.unmapped[previous.address]
            block.address, block.size = previous.address, block.size + previous.size
            block.previous = previous.previous
            if block.previous is not None:
                block.previous.next = block
        if _can_merge(block, block.next):
            assert block.next is not None
            following = block.next
            del pool.unmapped[following.address]
            block.size += following.size
            block.next = following.next
            if block.next is not None:
                block.next.previous = block
        pool.unmapped[block.address] = block


def _can_merge(block: Block, other: Block | None) -> bool:
    return other is not None and not other.allocated and other.mapped == block.mapped


def _growable_size(block: Block) -> int:
    following = block.next
    return block.size + (following.size if following is not None and not following.mapped else 0)
