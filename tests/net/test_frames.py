"""Messages that chunks are sealed into: whose memory is used again, and when."""

from __future__ import annotations

import tracemalloc
from typing import Final

from zkc.net.pipe.frames import Frames, Room, message_of

SIZE: Final = 100


def test_a_frame_is_used_again_only_once_the_recipient_has_what_was_in_it() -> None:
    frames = Frames(SIZE)
    first, second = frames.allot(SIZE), frames.allot(SIZE)
    frames.sealed(10, [first])
    frames.sealed(20, [second])
    frames.taken(9)
    third = frames.allot(SIZE)
    frames.sealed(30, [third])
    frames.taken(19)
    again = frames.allot(SIZE)
    assert message_of(again) is message_of(first)
    assert message_of(third) not in (message_of(first), message_of(second))
    assert message_of(frames.allot(SIZE)) not in map(message_of, (first, second, third))


def test_a_frame_of_another_size_is_made_for_one_use() -> None:
    frames = Frames(SIZE)
    for size in (SIZE - 1, SIZE + 1):
        frame = frames.allot(size)
        assert message_of(frame) is frame
        assert len(frame) == size
        frames.sealed(1, [frame])
    frames.taken(1)
    assert len(frames.allot(SIZE)) == SIZE


def test_all_connections_together_keep_no_more_than_there_is_room_for() -> None:
    """However late acknowledgements come: what is beyond that is made for one use."""
    room = Room(3 * SIZE + 1)
    one, two = Frames(SIZE, room), Frames(SIZE, room)
    kept = [one.allot(SIZE), one.allot(SIZE), two.allot(SIZE)]
    beyond = [one.allot(SIZE), two.allot(SIZE)]
    assert [isinstance(message_of(frame), bytearray) for frame in (*kept, *beyond)] == [False] * 3 + [True] * 2
    one.sealed(1, [*kept[:2], beyond[0]])
    one.taken(1)
    assert {message_of(one.allot(SIZE)), message_of(one.allot(SIZE))} == {message_of(each) for each in kept[:2]}
    for _ in range(2):
        one.close()
    made = [two.allot(SIZE) for _ in range(3)]
    assert [isinstance(message_of(frame), bytearray) for frame in made] == [False, False, True]


def test_a_message_costs_its_memory_once() -> None:
    """pyzmq keeps what a message was made of."""
    size = 1 << 20
    tracemalloc.start()
    try:
        frames = Frames(size)
        made = [frames.allot(size) for _ in range(8)]
        assert sum(map(len, made)) == 8 * size
        assert tracemalloc.get_traced_memory()[1] < 2 * size, "libzmq's own is not counted there"
    finally:
        tracemalloc.stop()
