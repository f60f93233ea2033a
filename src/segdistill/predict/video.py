"""Predict videos one frame at a time, decoded and encoded by PyAV, which is an extra.

Shapes: H/W frame in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePath
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from PIL import Image

from segdistill.core.errors import UserError
from segdistill.core.files import atomic_directory, atomic_file
from segdistill.core.progress import Progress
from segdistill.formats.classes import ClassTable
from segdistill.predict.outputs import blended, image_path, write_image

if TYPE_CHECKING:  # an extra, which need not be installed
    from av.container import InputContainer, OutputContainer
    from av.video.stream import VideoStream

# The encoder for a codec; for all other codecs, and where this one is missing, the first available of the next line.
_ENCODERS = {"hevc": "libx265"}
_ANY_ENCODER = ("libx264", "libopenh264", "mpeg4")
# With x264's macroblock tree, the bytes of the same frames differed from call to call.
_OPTIONS = {
    "libx264": {"crf": "20", "x264-params": "mbtree=0"},
    "libx265": {"crf": "23", "x265-params": "log-level=error"},
}
ClassesOf = Callable[[np.ndarray], np.ndarray]


def pyav() -> ModuleType:
    """Return PyAV; raise a UserError where it is not installed."""
    try:
        import av
    except ImportError:
        raise UserError("videos are read by PyAV, the extra 'video', which is not installed: pip install av") from None
    return av


def write_overlay(path: Path, target: Path, classes_of: ClassesOf, table: ClassTable) -> None:
    """Write the video at `path` blended with its classes to `target`, as MP4: same pace, same codec where possible.

    Pad odd heights and widths by a line, since encoders require even ones. Leave out the sound.

    Raises:
        UserError: no PyAV, no readable video, or a damaged one.
    """
    av = pyav()
    with (
        _opened(path) as video,
        atomic_file(target) as temporary,
        av.open(str(temporary), "w", format="mp4") as sink,
    ):
        encoder = None
        for image_HW3, time in video.frames():
            mixed_HW3 = blended(image_HW3, classes_of(image_HW3), table)
            height, width = mixed_HW3.shape[:2]
            mixed_HW3 = np.pad(mixed_HW3, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if encoder is None:
                encoder = _encoder(av, sink, video.stream, mixed_HW3.shape[:2])
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(mixed_HW3), format="rgb24")
            frame.pts, frame.time_base = time, video.stream.time_base
            sink.mux(encoder.encode(frame))
        if encoder is None:
            raise UserError(f"{path}: holds no frame")
        sink.mux(encoder.encode(None))


def write_frames(path: Path, targets: dict[str, Path], classes_of: ClassesOf, table: ClassTable) -> None:
    """Write the frames of the video at `path` as images, numbered from 0, into the folder of each kind in `targets`.

    Raises:
        UserError: no PyAV, no readable video, or a damaged one.
    """
    with _opened(path) as video, ExitStack() as stack:
        folders = {kind: stack.enter_context(atomic_directory(target)) for kind, target in targets.items()}
        for index, (image_HW3, _) in enumerate(video.frames()):
            name = PurePath(f"{path.stem}_{index:06d}")
            files = {kind: image_path(folder, name, kind) for kind, folder in folders.items()}
            write_image(files, Image.fromarray(image_HW3), classes_of(image_HW3), table)


class _Video(NamedTuple):
    """An open video."""

    path: Path
    container: InputContainer
    stream: VideoStream

    def frames(self) -> Iterator[tuple[np.ndarray, int | None]]:
        """Yield every frame as upright uint8 (H, W, 3) RGB, and its time in the stream's time base."""
        av = pyav()
        expected = self.stream.frames
        if not expected:  # not every format stores the number
            length_s = float((self.stream.duration or 0) * (self.stream.time_base or 0))
            expected = round(length_s * float(self.stream.average_rate or 0))
        with Progress(f"predict {self.path.name}", expected, unit="frame") as progress:
            decoded = self.container.decode(self.stream)
            while True:
                try:
                    frame = next(decoded)
                except StopIteration:
                    return
                except av.error.FFmpegError as error:
                    raise UserError(f"{self.path}: damaged after {progress.done} frames ({error.strerror})") from None
                # The rotation that players apply, in degrees counter-clockwise.
                yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)), frame.pts
                progress.advance()


@contextmanager
def _opened(path: Path) -> Iterator[_Video]:
    av = pyav()
    try:
        container = av.open(str(path))
    except av.error.FFmpegError as error:
        raise UserError(f"{path}: no readable video ({error.strerror})") from None
    with container:
        if not container.streams.video:
            raise UserError(f"{path}: holds no video")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield _Video(path, container, stream)


def _encoder(av: ModuleType, sink: OutputContainer, stream: VideoStream, size_px: tuple[int, int]) -> VideoStream:
    """Add a stream for frames of `size_px` to `sink`, in the codec of `stream` where an encoder is available."""
    wanted = [_ENCODERS.get(stream.codec_context.name), *_ANY_ENCODER]
    name = next(name for name in wanted if name and _has_encoder(av, name))
    added = sink.add_stream(name, rate=stream.average_rate, options=_OPTIONS.get(name, {}))
    encoder = cast("VideoStream", added)  # the kind of stream follows from the encoder
    encoder.height, encoder.width = size_px
    encoder.pix_fmt = "yuv420p"  # what every player shows
    assert stream.time_base is not None  # FFmpeg gives one to every stream that it reads
    encoder.codec_context.time_base = stream.time_base
    return encoder


def _has_encoder(av: ModuleType, name: str) -> bool:
    try:
        av.Codec(name, "w")
    except ValueError:  # the base of av's own exception for that
        return False
    return True
