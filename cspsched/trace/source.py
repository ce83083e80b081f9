"""The bytes of a trace: a file or standard input, unpacked."""

from __future__ import annotations

import gzip
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePath

from cspsched.errors import TraceError
from cspsched.problem.json_io import decoded, read_bytes

STDIN = Path("-")
PACKED_SUFFIXES = (".gz", ".zst")
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Content of a trace, and how messages call it."""

    name: str
    stem: str
    """The file's name without its suffixes."""
    data: bytes

    @property
    def text(self) -> str:
        """The content as text, its line ends as line feeds.

        Raises
        ------
        InputError
            If it is no UTF-8 text.
        """
        return decoded(self.data, self.name).replace("\r\n", "\n").replace("\r", "\n")


def read_source(path: Path) -> Source:
    """Return the unpacked content of a file, or of standard input for `-`.

    gzip and Zstandard are known by their first bytes, whatever the suffix.

    Raises
    ------
    InputError
        If the file is missing, a directory, or unreadable.
    TraceError
        If it is packed and damaged.
    """
    if path == STDIN:
        return Source(
            name="standard input", stem="stdin", data=_unpacked(sys.stdin.buffer.read(), "standard input")
        )
    return Source(name=str(path), stem=stem_of(path), data=_unpacked(read_bytes(path), str(path)))


def stem_of(path: PurePath) -> str:
    """Return the name without its suffix, the one of a packed file included."""
    return PurePath(path.stem).stem if path.suffix in PACKED_SUFFIXES else path.stem


def _unpacked(data: bytes, name: str) -> bytes:
    try:
        if data.startswith(_GZIP):
            return gzip.decompress(data)
        if data.startswith(_ZSTD):
            import pyarrow as pa

            with pa.input_stream(pa.BufferReader(data), compression="zstd") as stream:
                unpacked: bytes = stream.read()
            return unpacked
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise TraceError(f"{name} is packed and damaged ({error}); pack or fetch it again") from None
    return data
