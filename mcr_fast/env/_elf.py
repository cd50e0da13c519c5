"""What a library's file says of itself, read without loading it.

Loading may be what fails, and a machine of a cluster has no binutils.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

# Of a section header of 64 bits: name, type, flags, address, offset, size, link, info, ...
_SECTION = struct.Struct("<IIQQQQIIQQ")
_NEEDED_VERSIONS = 0x6FFFFFFE  # the type of .gnu.version_r
_FILE = struct.Struct("<HHIII")  # of it for one library: version, count, name, versions, next
_VERSION = struct.Struct("<IHHII")  # and for one version of that: hash, flags, number, name, next


def glibc_needed(library: Path) -> str | None:
    """The oldest glibc that a library can be loaded beside, such as "2.28"; None if unknown."""
    try:
        names = list(_versions(library.read_bytes()))
    except (OSError, struct.error, ValueError):
        return None
    found = [re.fullmatch(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?", name) for name in names]
    numbers = [(int(version[1]), int(version[2])) for version in found if version]
    return "{}.{}".format(*max(numbers)) if numbers else None


def _versions(image: bytes) -> Iterator[str]:
    """The versions of symbols that a little-endian ELF file of 64 bits asks other libraries for."""
    if image[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no ELF file of 64 bits")
    (sections_at,) = struct.unpack_from("<Q", image, 0x28)
    _, count = struct.unpack_from("<HH", image, 0x3A)
    sections = [_SECTION.unpack_from(image, sections_at + i * _SECTION.size) for i in range(count)]
    for section in sections:
        if section[1] != _NEEDED_VERSIONS:
            continue
        at, names_at = section[4], sections[section[6]][4]
        for _ in range(section[7]):
            _, versions, _, first, following = _FILE.unpack_from(image, at)
            entry = at + first
            for _ in range(versions):
                *_, name, step = _VERSION.unpack_from(image, entry)
                start = names_at + name
                yield image[start : image.index(b"\0", start)].decode()
                entry += step
            at += following
