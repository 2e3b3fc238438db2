"""Seeded damage to the bytes of a file."""

import re
from collections.abc import Callable
from random import Random

HUGE = (0, 1, 0x7F, 0xFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
"""What a length field may be set to."""
WORDS = (
    *("-1", "0", "99999999", "9999999999999999", "1" + "0" * 400, "1e999", "NaN"),
    *("null", "true", '""', '"\\ud800"', "[]", "{}", "[[[[[[[[", "-0.0", "'", "é"),
)
"""What a number or a word of a text may become."""
EDGE = 512
"""Formats have their headers within so many bytes of the beginning or the end."""


def mutated(content: bytes, other: bytes, random: Random) -> bytes:
    """Return `content` with one to four damages; `other` is a file of its kind."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        damage = random.choice(DAMAGES)
        if content.isascii() and random.random() < 0.5:  # a text that shall parse
            damage = reworded
        content = damage(content, other, random)
    return content


def place(content: bytes, random: Random) -> int:
    """Return an offset, often near the beginning or the end."""
    size = len(content)
    low, high = random.choice(((0, EDGE), (size - EDGE, size), (0, size)))
    return min(max(0, random.randint(low, high)), size)


def span(content: bytes, random: Random) -> tuple[int, int]:
    """Return where a stretch begins and ends."""
    start = place(content, random)
    return start, min(len(content), start + random.choice((1, 2, 8, 64, 1024)))


def flipped(content: bytes, other: bytes, random: Random) -> bytes:
    """Flip up to eight bits."""
    changed = bytearray(content)
    for _ in range(random.randint(1, 8) if changed else 0):
        changed[min(place(content, random), len(changed) - 1)] ^= 1 << random.randrange(
            8
        )
    return bytes(changed)


def overwritten(content: bytes, other: bytes, random: Random) -> bytes:
    """Overwrite a stretch by noise, zeros or ones."""
    start, stop = span(content, random)
    size = stop - start
    filling = random.choice((random.randbytes(size), bytes(size), b"\xff" * size))
    return content[:start] + filling + content[stop:]


def truncated(content: bytes, other: bytes, random: Random) -> bytes:
    """Cut the end off."""
    return content[: place(content, random)]


def inserted(content: bytes, other: bytes, random: Random) -> bytes:
    """Insert noise, or a stretch a second time."""
    start, stop = span(content, random)
    piece = random.choice((content[start:stop], random.randbytes(stop - start)))
    where = place(content, random)
    return content[:where] + piece + content[where:]


def removed(content: bytes, other: bytes, random: Random) -> bytes:
    """Take a stretch out."""
    start, stop = span(content, random)
    return content[:start] + content[stop:]


def oversized(content: bytes, other: bytes, random: Random) -> bytes:
    """Set what may be a length to a huge number, or to none."""
    size = random.choice((1, 2, 4, 8))
    number = random.choice(HUGE) % 256**size
    field = number.to_bytes(size, random.choice(("little", "big")))
    start = place(content, random)
    return content[:start] + field + content[start + size :]


def spliced(content: bytes, other: bytes, random: Random) -> bytes:
    """Go on with another file of the kind."""
    where = place(content, random)
    return content[:where] + other[random.choice((where, place(other, random))) :]


def reworded(content: bytes, other: bytes, random: Random) -> bytes:
    """Put another value in the place of a number or a quoted word."""
    found = list(re.finditer(rb'-?\d[\d.e-]*|"[^"]{0,40}"|\b\w+\b', content))
    if not found:
        return content
    match = random.choice(found)
    word = random.choice(WORDS).encode()
    return content[: match.start()] + word + content[match.end() :]


DAMAGES: tuple[Callable[[bytes, bytes, Random], bytes], ...] = (
    flipped,
    overwritten,
    truncated,
    inserted,
    removed,
    oversized,
    spliced,
    reworded,
)
