"""Says which state of the sources something was made from."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32


def source_version(*folders: Path) -> str:
    """Checksum of all Python files in some folders and below, eight hexadecimal digits.

    Machine code that is kept on disk carries it in its name: numba renews what it keeps when the file of the
    compiled function changes, but not when that of a function does which it calls.
    """
    version = 0
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            version = crc32(path.read_bytes(), version)
    return f"{version:08x}"
