"""Videos: frame by frame, at their own pace, upright. Where PyAV is missing, a message says what to install."""

from __future__ import annotations

import struct
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from segdistill.cli import app
from support.model_files import smooth_frame

pytestmark = pytest.mark.usefixtures("one_thread")
FRAMES, RATE = 6, 25


@pytest.fixture
def model(small_models) -> Path:
    return small_models.float32


@pytest.fixture
def av():
    return pytest.importorskip("av", reason="PyAV, the extra 'video', is not installed")


def write_clip(av, path: Path, size_px: tuple[int, int] = (64, 96), codec: str = "libx264") -> None:
    """A clip that pans over an image; its last frame is shown longer than the others."""
    wide = smooth_frame((size_px[0], size_px[1] + 4 * FRAMES), 1)
    with av.open(str(path), "w") as sink:
        stream = sink.add_stream(codec, rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *size_px, "yuv420p"
        stream.codec_context.time_base = Fraction(1, RATE)
        for index in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(wide[:, 4 * index :][:, : size_px[1]]), format="rgb24"
            )
            frame.pts, frame.time_base = index + 2 * (index == FRAMES - 1), Fraction(1, RATE)
            sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))


def decoded(av, path: Path) -> tuple[np.ndarray, list[float], str]:
    """Frames uint8 (N, H, W, 3), their times in seconds, and the codec."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        codec = container.streams.video[0].codec_context.name
    return (
        np.stack([frame.to_ndarray(format="rgb24") for frame in frames]),
        [float(frame.time) for frame in frames],
        codec,
    )


def call(*arguments: object):
    return CliRunner().invoke(app, ["predict", *map(str, arguments), "--threads", "1"])


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_an_overlay_keeps_codec_pace_and_size(codec, av, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(av, tmp_path / "clip.mp4", codec=codec)
    done = call("clip.mp4", "--model", model)
    assert done.exit_code == 0, done.output
    before, times_s, codec = decoded(av, tmp_path / "clip.mp4")
    after, times_after_s, codec_after = decoded(av, tmp_path / "predictions/overlay/clip_overlay.mp4")
    assert after.shape == before.shape
    assert (times_after_s, codec_after) == (pytest.approx(times_s), codec)
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["overlay"]


def test_frames_are_those_of_images(av, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(av, tmp_path / "clip.mp4")
    assert call("clip.mp4", "--model", model, "--frames", "--write", "label-ids,color").exit_code == 0
    (tmp_path / "stills").mkdir()
    for index, frame in enumerate(decoded(av, tmp_path / "clip.mp4")[0]):
        Image.fromarray(frame).save(tmp_path / f"stills/clip_{index:06d}.png")
    assert call("stills", "--model", model, "--write", "label-ids,color", "--out", "stills-out").exit_code == 0
    for kind in ("label-ids", "color"):
        found = sorted((tmp_path / "predictions" / kind / "clip_frames").iterdir())
        expected = sorted((tmp_path / "stills-out" / kind).iterdir())
        assert len(found) == FRAMES
        assert [(path.name, path.read_bytes()) for path in found] == [
            (path.name, path.read_bytes()) for path in expected
        ]


def test_the_overlay_is_half_the_frame(av, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(av, tmp_path / "clip.mp4")
    assert call("clip.mp4", "--model", model).exit_code == 0
    assert call("clip.mp4", "--model", model, "--frames", "--write", "overlay").exit_code == 0
    video = decoded(av, tmp_path / "predictions/overlay/clip_overlay.mp4")[0]
    for index, frame in enumerate(video):
        still = np.asarray(Image.open(tmp_path / f"predictions/overlay/clip_frames/clip_{index:06d}_overlay.jpg"))
        assert np.abs(still.astype(int) - frame).mean() < 8  # two lossy encodings


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_the_same_video_gives_the_same_bytes(codec, av, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(av, tmp_path / "clip.mp4", codec=codec)
    for out in ("one", "two"):
        assert call("clip.mp4", "--model", model, "--out", out).exit_code == 0
    one, two = (tmp_path / out / "overlay/clip_overlay.mp4" for out in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def matrix(*values: float) -> bytes:
    """The transformation in an MP4's headers (ISO 14496-12): a, b, u, c, d, v, x, y, w; x' = ax + cy, y' = bx + dy."""
    return b"".join(struct.pack(">i", round(v * 2**30 if i % 3 == 2 else v * 2**16)) for i, v in enumerate(values))


def test_a_video_is_turned_upright(av, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(av, tmp_path / "clip.mp4")
    before = decoded(av, tmp_path / "clip.mp4")[0]
    content, as_it_is = (tmp_path / "clip.mp4").read_bytes(), matrix(1, 0, 0, 0, 1, 0, 0, 0, 1)
    track = content.rindex(as_it_is)  # the movie's own comes first
    # x' = -y, y' = x: what is to the right comes below, as of a telephone held upright.
    turned = content[:track] + matrix(0, 1, 0, -1, 0, 0, 0, 0, 1) + content[track + len(as_it_is) :]
    (tmp_path / "turned.mp4").write_bytes(turned)
    assert call("turned.mp4", "--model", model, "--frames", "--write", "label-ids").exit_code == 0
    Image.fromarray(np.rot90(before[2], -1)).save("upright.png")
    assert call("upright.png", "--model", model, "--write", "label-ids").exit_code == 0
    out = tmp_path / "predictions/label-ids"
    found = (out / "turned_frames/turned_000002_labelIds.png").read_bytes()
    assert found == (out / "upright_labelIds.png").read_bytes()


def test_odd_sizes_get_a_line_more(av, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(av, tmp_path / "clip.mkv", size_px=(65, 97), codec="ffv1")
    assert call("clip.mkv", "--model", model).exit_code == 0
    assert decoded(av, tmp_path / "predictions/overlay/clip_overlay.mp4")[0].shape[1:3] == (66, 98)


@pytest.mark.parametrize("kind", ["text", "cut"])
def test_damaged_video_is_reported_and_leaves_nothing(kind, av, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(av, tmp_path / "clip.mp4")
    content = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "clip.mp4").write_bytes(b"no video" if kind == "text" else content[: len(content) // 2])
    done = call("clip.mp4", "--model", model)
    assert done.exit_code == 1
    assert "clip.mp4" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "predictions").rglob("*.mp4"))


def test_existing_outputs_of_a_video_are_refused(av, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(av, tmp_path / "clip.mp4")
    assert call("clip.mp4", "--model", model).exit_code == 0
    again = call("clip.mp4", "--model", model)
    assert again.exit_code == 1
    assert "predictions/overlay/clip_overlay.mp4" in again.stderr
    assert call("clip.mp4", "--model", model, "--overwrite").exit_code == 0


def test_without_pyav_the_extra_is_named(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"")
    Image.fromarray(smooth_frame((48, 64))).save(tmp_path / "a.png")
    done = call("clip.mp4", "a.png", "--model", model, "--write", "overlay")
    assert done.exit_code == 1
    assert "the extra 'video', which is not installed: pip install av" in done.stderr
    assert (tmp_path / "predictions/overlay/a_overlay.jpg").is_file()


def test_of_a_video_only_the_overlay_or_frames_are_written(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"")
    done = call("clip.mp4", "--model", model, "--write", "color")
    assert done.exit_code == 1
    assert "--frames" in done.stderr
    assert call("clip.mp4", "--model", model, "--benchmark").exit_code == 1
