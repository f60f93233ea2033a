"""ONNX files: the same figures as torch at any size, described by their metadata, refused when they are not ours."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from segdistill.core.errors import UserError
from segdistill.data.transforms import normalize
from segdistill.export.onnx_file import ForwardSession, OnnxPredictor, read_metadata, write_float32, write_int8
from segdistill.formats.header import Header
from segdistill.nets.device import Compute, TorchPredictor
from segdistill.nets.registry import build
from segdistill.nets.resize import upsample

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES, TRACED_PX, OPSET = 7, (64, 96), 18
ARCHS = ("deeplabv3plus_mobilenet", "deeplabv3_mobilenet_lite")
COMPUTE = Compute(torch.device("cpu"), torch.float32, 1)


def frames(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth noise uint8 (N, H, W, 3)."""
    coarse = torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (count, 3, height // 8, width // 8)))
    return upsample(coarse, (height, width)).permute(0, 2, 3, 1).numpy().astype(np.uint8)


def settled(arch: str) -> torch.nn.Module:
    """A random net whose batch norms know their inputs, so that signals neither vanish nor explode."""
    torch.manual_seed(0)
    net = build(arch, CLASSES).train()
    with torch.no_grad():
        for seed in range(8):
            net(normalize(torch.from_numpy(frames(4, *TRACED_PX, seed=seed))))
    return net.eval()


class Written:
    """A net, its facts and its float32 file."""

    def __init__(self, arch: str, folder) -> None:
        self.net, self.facts, self.path = settled(arch), Header.of_net(arch, CLASSES, 16), folder / f"{arch}.onnx"
        write_float32(self.path, self.net, self.facts, OPSET, TRACED_PX)


@pytest.fixture(scope="module", params=ARCHS)
def written(request, tmp_path_factory):
    return Written(request.param, tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    return Written("deeplabv3_mobilenet_lite", tmp_path_factory.mktemp("lite"))


@pytest.fixture(scope="module")
def int8(lite):
    path = lite.path.with_name("int8.onnx")
    write_int8(path, lite.net, lite.facts, OPSET, frames(4, *TRACED_PX, seed=20))
    return path


@pytest.mark.parametrize(("count", "height", "width"), [(1, 64, 96), (3, 64, 96), (1, 96, 64), (2, 72, 136)])
def test_the_file_gives_torchs_figures_at_any_size(written, count, height, width):
    images = frames(count, height, width, seed=9)
    logits, classes = OnnxPredictor(written.path, 1)(images)
    expected_logits, expected_classes = TorchPredictor(written.net, COMPUTE)(images)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    assert len(expected_classes.unique()) > 1
    assert (classes == expected_classes).float().mean() >= 0.999


def test_class_maps_are_bytes_of_the_frames_size(lite):
    classes = OnnxPredictor(lite.path, 1).classes(frames(2, 72, 136))
    assert (classes.dtype, classes.shape) == (np.uint8, (2, 72, 136))


def test_class_maps_alone_are_those_beside_the_logits(lite):
    predictor, images = OnnxPredictor(lite.path, 1), frames(2, 64, 96)
    assert np.array_equal(predictor.classes(images), predictor(images)[1].numpy())


def test_forward_alone_gives_torchs_logits(written):
    images = frames(1, 72, 136, seed=5)
    with torch.no_grad():
        expected = written.net(normalize(torch.from_numpy(images)))
    found = torch.from_numpy(ForwardSession(written.path, 1).run(images))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_forward_alone_starts_from_normalised_pixels(lite):
    (pixels,) = ForwardSession(lite.path, 1).session.get_inputs()
    assert (pixels.type, pixels.shape[1]) == ("tensor(float)", 3)


def test_the_file_is_valid(written):
    onnx.checker.check_model(onnx.load(written.path), full_check=True)


def test_the_file_has_the_opset_asked_for(lite, tmp_path):
    write_float32(tmp_path / "other.onnx", lite.net, lite.facts, 20, TRACED_PX)
    for path, opset in ((lite.path, 18), (tmp_path / "other.onnx", 20)):
        assert [entry.version for entry in onnx.load(path).opset_import if entry.domain in ("", "ai.onnx")] == [opset]


def test_names_and_types_are_fixed(written):
    graph = onnx.load(written.path).graph
    described = [(value.name, value.type.tensor_type.elem_type) for value in (*graph.input, *graph.output)]
    assert described == [("image", TensorProto.UINT8), ("classes", TensorProto.UINT8), ("logits", TensorProto.FLOAT)]


def test_batch_height_and_width_are_dynamic(written):
    (image,) = onnx.load(written.path).graph.input
    assert [axis.dim_param or axis.dim_value for axis in image.type.tensor_type.shape.dim] == [
        "batch",
        "height",
        "width",
        3,
    ]


def test_metadata_holds_the_facts(written):
    assert read_metadata(written.path) == written.facts


def test_weights_lie_in_the_file_itself(lite):
    assert not any(tensor.external_data for tensor in onnx.load(lite.path, load_external_data=False).graph.initializer)
    assert lite.path.stat().st_size > 4 * 4_000_000


def test_the_same_net_gives_the_same_bytes(lite, tmp_path):
    write_float32(tmp_path / "again.onnx", lite.net, dict(reversed(lite.facts.items())), OPSET, TRACED_PX)
    assert (tmp_path / "again.onnx").read_bytes() == lite.path.read_bytes()


def test_exporting_leaves_the_net_as_it_was(lite, tmp_path):
    before = {key: value.clone() for key, value in lite.net.state_dict().items()}
    write_float32(tmp_path / "again.onnx", lite.net, lite.facts, OPSET, TRACED_PX)
    assert all(torch.equal(value, before[key]) for key, value in lite.net.state_dict().items())


def test_int8_is_valid_and_described(lite, int8):
    onnx.checker.check_model(onnx.load(int8), full_check=True)
    assert read_metadata(int8) == lite.facts | {"quantised": "int8"}


def test_int8_is_a_fraction_of_the_size(lite, int8):
    assert int8.stat().st_size < 0.35 * lite.path.stat().st_size


def test_int8_has_quantised_weights(int8):
    weights = [tensor for tensor in onnx.load(int8).graph.initializer if len(tensor.dims) == 4]
    assert {tensor.data_type for tensor in weights} == {TensorProto.INT8}


@pytest.mark.parametrize("size_px", [TRACED_PX, (96, 72)])
def test_int8_mostly_names_the_same_classes(lite, int8, size_px):
    images = frames(2, *size_px, seed=30)
    classes, expected = (OnnxPredictor(path, 1).classes(images) for path in (int8, lite.path))
    assert (classes == expected).mean() > 0.8


@pytest.mark.parametrize("arch", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_int8_of_torchvisions_nets_keeps_logits_that_are_no_bytes_and_runs(arch, tmp_path):
    float32, path = Written(arch, tmp_path), tmp_path / "int8.onnx"
    write_int8(path, float32.net, float32.facts, OPSET, frames(4, *TRACED_PX, seed=20))
    (last,) = [node for node in onnx.load(path).graph.node if "logits" in node.output]
    assert last.op_type != "DequantizeLinear"  # opening such a file aborts the process
    images = frames(2, 96, 72, seed=30)
    classes, expected = (OnnxPredictor(file, 1).classes(images) for file in (path, float32.path))
    assert (classes == expected).mean() > 0.8


def test_int8_of_the_same_images_gives_the_same_bytes(lite, int8, tmp_path):
    write_int8(tmp_path / "again.onnx", lite.net, lite.facts, OPSET, frames(4, *TRACED_PX, seed=20))
    assert (tmp_path / "again.onnx").read_bytes() == int8.read_bytes()


def test_int8_follows_its_calibration_images(lite, int8, tmp_path):
    write_int8(tmp_path / "dark.onnx", lite.net, lite.facts, OPSET, frames(1, *TRACED_PX) // 16)
    assert (tmp_path / "dark.onnx").read_bytes() != int8.read_bytes()


def save_foreign(path, metadata: dict) -> None:
    """An ONNX model of somebody else: x -> relu(x)."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "foreign", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)


@pytest.fixture
def bad_file(lite, tmp_path, request):
    """A file of the kind named by the parameter."""
    path = tmp_path / f"{request.param}.onnx"
    whole = lite.path.read_bytes()
    if request.param in ("half", "tail"):
        path.write_bytes(whole[: len(whole) // 2] if request.param == "half" else whole[:-10])
    elif request.param == "text":
        path.write_text("no model\n" * 99)
    elif request.param == "empty":
        path.touch()
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "foreign":
        save_foreign(path, {"segdistill": "{}"})
    return path


BAD_FILES = ["half", "tail", "text", "empty", "folder", "missing", "foreign"]


@pytest.mark.parametrize("bad_file", BAD_FILES, indirect=True)
@pytest.mark.parametrize("read", [read_metadata, lambda path: OnnxPredictor(path, 1)])
def test_what_is_no_file_of_ours_is_refused_by_name(bad_file, read):
    with pytest.raises(UserError) as error:
        read(bad_file)
    assert str(bad_file) in str(error.value)


@pytest.mark.parametrize("bad_file", ["foreign"], indirect=True)
def test_a_refusal_tells_what_was_found(bad_file):
    with pytest.raises(UserError, match=r"has inputs \['x'\] and outputs \['y'\]; ours has \['image'\]"):
        read_metadata(bad_file)


def test_our_names_without_our_metadata_are_refused(lite, tmp_path):
    model = onnx.load(lite.path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(UserError, match=r"bare\.onnx"):
        read_metadata(tmp_path / "bare.onnx")


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"arch": "deeplabv3_mobilenet_lite", "output_stride": 16}'])
def test_metadata_that_describe_no_net_are_refused_by_name(lite, tmp_path, text):
    model = onnx.load(lite.path)
    model.metadata_props[0].value = text
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(UserError, match=r"odd\.onnx: its header does not describe a network"):
        read_metadata(tmp_path / "odd.onnx")


def test_a_failed_export_leaves_no_file(tmp_path, lite):
    with pytest.raises(Exception, match="JSON serializable"):
        write_float32(tmp_path / "net.onnx", lite.net, lite.facts | {"note": object()}, OPSET, TRACED_PX)
    assert list(tmp_path.iterdir()) == []
