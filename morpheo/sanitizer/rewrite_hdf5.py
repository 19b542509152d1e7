"""
Writes HDF5 files anew, value by value. This runs in a container that has nothing else to lose, and never in a worker.

An HDF5 file can name other files: external links, virtual datasets and external raw storage would let whoever opens it
read the hidden data (``trust`` 0.1). So names that lead elsewhere are refused, and values are copied into a fresh
file: datasets of numbers and texts, groups and attributes. Whatever else is refused too.

Usage: ``rewrite_hdf5.py SOURCE TARGET MAX_BYTES``. ``SOURCE/*/NAME`` is written to ``TARGET/*/NAME`` if it is HDF5.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

#: The library, which is imported in the container only.
h5py: Any = None

#: What the program ends with.
REFUSED, TOO_LARGE, NO_H5PY = 65, 66, 69
SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: Filters of the library itself, by number: deflate, shuffle, fletcher32, nbit, scale-offset, and h5py's lzf.
FILTERS = frozenset({1, 2, 3, 5, 6, 32000})
MAX_DEPTH, MAX_OBJECTS, MAX_ATTRIBUTE = 16, 10_000, 64 << 10
#: How many bytes are copied at once.
PIECE = 8 << 20


class Refused(Exception):
    """A file that is not copied, with the reason."""


class TooLarge(Refused):
    """A file whose values are too many."""


def is_hdf5(path: Path) -> bool:
    """Return whether a file has the signature at one of the places where the library looks for it."""
    with open(path, "rb") as file:
        size, offset = os.fstat(file.fileno()).st_size, 0
        while offset < size:
            file.seek(offset)
            if file.read(len(SIGNATURE)) == SIGNATURE:
                return True
            offset = offset * 2 or 512
    return False


class Copy:
    """Copies one file; the largest size is that of all values as they are in memory."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._seen: set[tuple[int, int]] = set()

    def group(self, source: Any, target: Any, depth: int = 0) -> None:
        """Copy what is in a group."""
        if depth > MAX_DEPTH:
            raise Refused(f"groups are nested deeper than {MAX_DEPTH}")
        self._attributes(source, target)
        for name in source:
            link = source.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise Refused(f"{name!r} is a link, not a value")
            item = source[name]
            self._meet(item, name)
            if isinstance(item, h5py.Group):
                self.group(item, target.create_group(name), depth + 1)
            elif isinstance(item, h5py.Dataset):
                self._dataset(item, target, name)
            else:
                raise Refused(f"{name!r} is neither a group nor a dataset")

    def _meet(self, item: Any, name: str) -> None:
        info = h5py.h5o.get_info(item.id)
        if (info.fileno, info.addr) in self._seen:
            raise Refused(f"{name!r} has two names")
        self._seen.add((info.fileno, info.addr))
        if len(self._seen) > MAX_OBJECTS:
            raise TooLarge(f"there are more than {MAX_OBJECTS} groups and datasets")

    def _dataset(self, source: Any, target: Any, name: str) -> None:
        settings = source.id.get_create_plist()
        if source.is_virtual or settings.get_layout() not in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED):
            raise Refused(f"{name!r} is a virtual dataset")
        if settings.get_external_count():
            raise Refused(f"{name!r} keeps its values in another file")
        filters = {settings.get_filter(number)[0] for number in range(settings.get_nfilters())}
        if not filters <= FILTERS:
            raise Refused(f"{name!r} uses unknown filters: {sorted(filters - FILTERS)}")
        check_type(source.dtype, name)
        if source.shape is None:
            made = target.create_dataset(name, data=h5py.Empty(source.dtype))
        else:
            self._take(source.size * source.dtype.itemsize, name)
            packed = {"compression": "gzip", "compression_opts": 1} if filters and source.size else {}
            made = target.create_dataset(name, shape=source.shape, dtype=source.dtype, **packed)
            self._values(source, made, name)
        self._attributes(source, made)

    def _values(self, source: Any, target: Any, name: str) -> None:
        if source.size == 0:
            return
        if not source.shape:
            target[()] = self._read(source, (), name)
            return
        row = max(1, source.size * source.dtype.itemsize // source.shape[0])
        step = max(1, PIECE // row)
        for start in range(0, source.shape[0], step):
            target[start : start + step] = self._read(source, slice(start, start + step), name)

    def _read(self, source: Any, where: Any, name: str) -> Any:
        values = source[where]
        if source.dtype.kind == "O":  # texts of any length: only now it is known how long
            texts = values.ravel() if where != () else [values]
            self._take(sum(map(len, texts)), name)
        return values

    def _attributes(self, source: Any, target: Any) -> None:
        for name in source.attrs:
            attribute = source.attrs.get_id(name)
            check_type(attribute.dtype, name)
            if attribute.get_storage_size() > MAX_ATTRIBUTE:
                raise TooLarge(f"the attribute {name!r} has more than {MAX_ATTRIBUTE} bytes")
            self._take(attribute.get_storage_size(), name)
            target.attrs.create(name, source.attrs[name], dtype=attribute.dtype)

    def _take(self, size: int, name: str) -> None:
        self._left -= size
        if self._left < 0:
            raise TooLarge(f"with {name!r} its values have more bytes than are allowed")


def check_type(dtype: Any, name: str) -> None:
    """Refuse what is no number and no text, or made of such: references lead elsewhere."""
    if dtype.subdtype is not None:
        check_type(dtype.subdtype[0], name)
    elif dtype.fields:
        for part in dtype.names:
            check_type(dtype.fields[part][0], name)
    elif dtype.kind == "O":
        if h5py.check_string_dtype(dtype) is None:
            raise Refused(f"{name!r} holds neither numbers nor texts")
    elif dtype.kind not in "biufcS" or h5py.check_ref_dtype(dtype) is not None:
        raise Refused(f"{name!r} holds neither numbers nor texts")


def rewrite(source: Path, target: Path, max_bytes: int) -> None:
    """Copy one file."""
    with h5py.File(source, "r", locking=False) as old, h5py.File(target, "w", libver=("earliest", "v110")) as new:
        Copy(max_bytes).group(old, new)


def main(source: str, target: str, max_bytes: str) -> int:
    """Copy all files; print what is refused, and return the exit status."""
    for path in sorted(Path(source).glob("*/*")):
        if not is_hdf5(path):
            continue
        try:
            rewrite(path, Path(target, path.parent.name, path.name), int(max_bytes))
        except Exception as exc:  # the library raises whatever it likes
            reason = str(exc) if isinstance(exc, Refused) else "it is damaged: " + str(exc)
            print(f"{path.name}: {reason[:300]}", flush=True)
            return TOO_LARGE if isinstance(exc, TooLarge) else REFUSED
    return 0


if __name__ == "__main__":
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as exc:
        print(exc)
        sys.exit(NO_H5PY)
    sys.exit(main(*sys.argv[1:]))
