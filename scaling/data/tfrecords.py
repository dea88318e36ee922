"""The TFRecord format, read without TensorFlow.

A file is a sequence of records: the length (uint64, little-endian), the masked CRC32C of these eight bytes, the data,
and its masked CRC32C (https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details).
"""

import struct
from collections.abc import Iterator

from scaling.data.storage import StorageError
from scaling.files import Path

_AGAIN = "fetch or prepare the file again"


def read_tfrecords(path: Path, length: int) -> Iterator[bytes]:
    """The records of a file, one after the other.

    path: a local path, or one that etils.epath opens (gs://...). length: how many records there should be.
    Raises InputError where the file is cut or too long, and where a checksum is not met.
    """
    from etils import epath

    where = str(path)
    try:
        file = epath.Path(path).open("rb")
    except OSError as error:
        raise StorageError(f"cannot be read: {error.strerror or error}", where) from None
    with file:
        position = count = 0
        while head := file.read(12):
            # The length is checked before it is used: a garbled one could ask for more memory than there is.
            _check(head[:8], head[8:], f"record at byte {position}", where)
            (size,) = struct.unpack("<Q", head[:8])
            body = file.read(size + 4)
            if len(body) != size + 4:
                raise StorageError(f"record at byte {position} is cut off", where, _AGAIN)
            data = body[:size]
            _check(data, body[size:], f"record at byte {position}", where)
            position, count = position + 16 + size, count + 1
            yield data
    if count != length:
        raise StorageError(f"{count} records instead of {length}", where, _AGAIN)


def masked_crc32c(data: bytes) -> bytes:
    """The checksum of the format: CRC32C, rotated right by 15 bits, plus a constant; four bytes, little-endian."""
    import google_crc32c

    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _check(data: bytes, checksum: bytes, what: str, where: str) -> None:
    if len(checksum) < 4:
        raise StorageError(f"{what} is cut off", where, _AGAIN)
    if masked_crc32c(data) != checksum:
        raise StorageError(f"{what} does not match its checksum", where, _AGAIN)
