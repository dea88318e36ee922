import struct

import pytest

from scaling.data.tfrecords import masked_crc32c, read_tfrecords
from scaling.errors import InputError


def record(data):
    length = struct.pack("<Q", len(data))
    return length + masked_crc32c(length) + data + masked_crc32c(data)


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(record(b"one") + record(b"") + record(b"three" * 1000))
    return path


def test_records_come_back(records):
    assert list(read_tfrecords(records, 3)) == [b"one", b"", b"three" * 1000]


def test_the_checksum_of_the_format():
    # CRC32C of "123456789" is 0xE3069283 (RFC 3720, and every catalogue of CRCs); rotated by 15 bits and shifted.
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17) % 2**32 + 0xA282EAD8) % 2**32
    assert masked_crc32c(b"123456789") == masked.to_bytes(4, "little")


def test_every_cut_of_a_tfrecord_file_is_found(records):
    content = records.read_bytes()[:100]
    for length in range(100):
        records.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"cut off|records instead of 3"):
            list(read_tfrecords(records, 3))


def test_every_flipped_byte_of_a_tfrecord_file_is_found(records):
    content = records.read_bytes()
    for position in range(70):
        flipped = bytearray(content)
        flipped[position] ^= 0x80
        records.write_bytes(flipped)
        with pytest.raises(InputError, match="does not match its checksum"):
            list(read_tfrecords(records, 3))


def test_a_missing_record_or_file_is_found(records, tmp_path):
    with pytest.raises(InputError, match="3 records instead of 4"):
        list(read_tfrecords(records, 4))
    with pytest.raises(InputError, match="none: cannot be read"):
        list(read_tfrecords(tmp_path / "none", 3))
