"""Containers opened and closed again, so that damage gets past their checksums."""

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable

Opened = tuple[bytes, Callable[[bytes], bytes]]
"""What lies inside, and what closes the container around it again."""


def gzipped(content: bytes) -> Opened:
    """The content of a gzip file."""
    return gzip.decompress(content), lambda inner: gzip.compress(inner, 1, mtime=0)


def safetensors_header(content: bytes) -> Opened:
    """The JSON header of a safetensors file; its length is kept right."""
    size = int.from_bytes(content[:8], "little")
    data = content[8 + size :]

    def close(header: bytes) -> bytes:
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header + data

    return content[8 : 8 + size], close


def zipped_pickle(content: bytes) -> Opened:
    """The pickle in a file of torch."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickle = next(name for name in entries if name.endswith("data.pkl"))

    def close(inner: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, entry in entries.items():
                info = zipfile.ZipInfo(name)  # of no date, so always the same bytes
                archive.writestr(info, inner if name == pickle else entry)
        return buffer.getvalue()

    return entries[pickle], close


def png_checked(content: bytes) -> Opened:
    """A PNG file; the checksums of its chunks are made right."""

    def close(inner: bytes) -> bytes:
        parts, start = [inner[:8]], 8
        while start + 12 <= len(inner):
            (size,) = struct.unpack(">I", inner[start : start + 4])
            body = inner[start + 4 : start + 8 + size]
            parts += [inner[start : start + 4], body]
            parts.append(struct.pack(">I", zlib.crc32(body)))
            start += 12 + size
        return b"".join(parts)

    return content, close
