"""The audio formats, in one table for files and streams: a new format is a row here.

The names of codecs, containers and options are libav's. Nothing heavy is imported, so that ``--help`` stays quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Encoding:
    """How a format is made for one of its uses; without anything, as its codec and container do by themselves."""

    bit_rate: int | None = None  # bit/s
    rate: int | None = None  # samples a second; None: the model's own
    codec_options: Mapping[str, str] = field(default_factory=dict)
    container_options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """One format: ``stream`` makes bytes that can be sent as they grow, ``file`` goes back to what stands before."""

    name: str  # as a request's response_format
    media_type: str
    endings: tuple[str, ...] = ()  # of files' names
    codec: str | None = None  # None: plain samples, 16-bit little-endian
    container: str = ""
    stream: Encoding | None = None
    file: Encoding | None = None


# Frames of mp3 and aac hold a fixed number of samples, and their streams cannot say how many to skip: at 48 kHz the
# codec's delay and the padding of the last frame together stay below 50 ms, at 24 kHz they would take up to 85.
# The options for streams of flac and opus make short frames and pages, so that bytes flow from the first frame on.
_MP3_STREAM = Encoding(128_000, 48_000, container_options={"write_xing": "0", "id3v2_version": "0"})
# LAME's quality V4 at a variable bit rate, which libav counts in units of 1/118.
_MP3_FILE = Encoding(
    codec_options={"flags": "+qscale", "global_quality": str(4 * 118)}, container_options={"id3v2_version": "0"}
)
_NO_PADDING = {"metadata_header_padding": "0"}  # 8 KiB, for titles and the like
_FLAC_STREAM = Encoding(codec_options={"compression_level": "2"}, container_options=_NO_PADDING)
_FLAC_FILE = Encoding(container_options=_NO_PADDING)
_OPUS_STREAM = Encoding(64_000, container_options={"page_duration": "20000"})  # in microseconds

# An .ogg holds Opus: libav has no Vorbis encoder of its own for mono sound, and PyAV's wheels come without libvorbis.
# There are no .aac files: ADTS cannot say how long it is. An .m4a, which can, is made only when it ends: no stream.
FORMATS = (
    Format("mp3", "audio/mpeg", (".mp3",), "libmp3lame", "mp3", _MP3_STREAM, _MP3_FILE),
    Format("opus", "audio/ogg", (".ogg", ".opus"), "libopus", "ogg", _OPUS_STREAM, Encoding(64_000)),
    Format("aac", "audio/aac", (), "aac", "adts", Encoding(128_000, 48_000)),
    Format("flac", "audio/flac", (".flac",), "flac", "flac", _FLAC_STREAM, _FLAC_FILE),
    Format("wav", "audio/wav", (".wav",), stream=Encoding(), file=Encoding()),
    Format("pcm", "audio/pcm", stream=Encoding()),
    Format("m4a", "audio/mp4", (".m4a",), "aac", "ipod", file=Encoding(64_000)),
)

STREAMS: Mapping[str, Format] = MappingProxyType({f.name: f for f in FORMATS if f.stream is not None})
"""The formats that can be streamed, by their names."""

FILES: Mapping[str, Format] = MappingProxyType({e: f for f in FORMATS if f.file is not None for e in f.endings})
"""The formats of files, by their names' endings."""
