"""Ogg pages ↔ packets, as far as one live stream needs them (RFC 3533)."""

from __future__ import annotations

import struct
import zlib

MAGIC = b"OggS"
FIRST_PAGE = 2
"""Flag of the first page of a stream."""
HEADER_BYTES = 27
MAX_PACKET_BYTES = 65_025
"""A packet that goes on over more than one page is dropped beyond this size; an Opus packet has at most 61 440."""
MAX_PAGE_BYTES = HEADER_BYTES + 255 + 255 * 255
MOST_BEGINNINGS = 16
"""Beginnings in what waits that no page follows, or not yet; beyond that it is thrown away. Four bytes are one, and to
find out costs a checksum of up to 65 kB."""
_HEADER = struct.Struct("<4sBBqIIIB")
_CHECKSUM_AT = slice(22, 26)
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def checksum(page: bytes) -> int:
    """Ogg's CRC-32 (polynomial 04C11DB7, start 0): zlib's with the bits of each byte, and of the result, reversed."""
    crc = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(_REVERSED_BITS), "big")


class PageWriter:
    """Puts packets on pages, one on each."""

    def __init__(self, serial: int = 1) -> None:
        self._serial, self._number = serial, 0

    def page(self, packet: bytes, granule: int, flags: int = 0) -> bytes:
        """A page; ``granule``: samples of the stream up to its end, at 48 kHz for Opus."""
        lacing = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
        header = _HEADER.pack(MAGIC, 0, flags, granule, self._serial, self._number, 0, len(lacing))
        page = bytearray(header + lacing + packet)
        page[_CHECKSUM_AT] = checksum(bytes(page)).to_bytes(4, "little")
        self._number += 1
        return bytes(page)


class PacketReader:
    """Finds the packets in a stream of bytes that may be cut anywhere and hold anything."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._begun = b""  # a packet that goes on on the next page

    def push(self, data: bytes) -> list[bytes]:
        """The packets that are complete now. Bytes that are not a page of a right checksum are passed over."""
        self._bytes += data
        packets: list[bytes] = []
        beginnings: list[int] = []  # of pages that are damaged, or not whole yet: a later one may be whole
        at = 0
        while (at := self._bytes.find(MAGIC, at)) >= 0 and len(beginnings) < MOST_BEGINNINGS:
            page = self._page_at(at)
            if page is not None and _is_whole(page):
                packets += self._packets(page)
                del self._bytes[: at + len(page)]
                at = 0
                beginnings.clear()
            else:
                beginnings.append(at)
                at += len(MAGIC)
        self._forget(beginnings)
        return packets

    def _page_at(self, start: int) -> bytes | None:
        """The page that begins here; None unless all of it is there."""
        header = self._bytes[start : start + HEADER_BYTES + 255]
        if len(header) < HEADER_BYTES or len(header) < HEADER_BYTES + header[HEADER_BYTES - 1]:
            return None
        lacing = header[HEADER_BYTES : HEADER_BYTES + header[HEADER_BYTES - 1]]
        page = self._bytes[start : start + HEADER_BYTES + len(lacing) + sum(lacing)]
        return bytes(page) if len(page) == HEADER_BYTES + len(lacing) + sum(lacing) else None

    def _forget(self, beginnings: list[int]) -> None:
        """Keep what a page may still come of."""
        if len(beginnings) >= MOST_BEGINNINGS:
            self._bytes.clear()
            return
        open_from = next((at for at in beginnings if self._page_at(at) is None), len(self._bytes) - len(MAGIC) + 1)
        del self._bytes[: max(0, open_from, len(self._bytes) - MAX_PAGE_BYTES)]

    def _packets(self, page: bytes) -> list[bytes]:
        packets = []
        at = HEADER_BYTES + page[HEADER_BYTES - 1]
        for length in page[HEADER_BYTES:at]:
            self._begun += page[at : at + length]
            at += length
            if length < 255:
                if len(self._begun) <= MAX_PACKET_BYTES:
                    packets.append(self._begun)
                self._begun = b""
        self._begun = self._begun[: MAX_PACKET_BYTES + 1]
        return packets


def _is_whole(page: bytes) -> bool:
    """Whether the checksum fits; an error in a page's header would misplace all that follows."""
    blank = page[: _CHECKSUM_AT.start] + bytes(4) + page[_CHECKSUM_AT.stop :]
    return checksum(blank) == int.from_bytes(page[_CHECKSUM_AT], "little")
