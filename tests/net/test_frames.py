"""Messages that chunks are sealed into: whose memory is used again, and when."""

from __future__ import annotations

from typing import Final

from zkc.net.pipe.frames import Frames, message_of

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
