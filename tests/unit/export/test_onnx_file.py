"""ONNX files: torch's classes at any size, described by their metadata; files of other projects are refused."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from segdistill.core.errors import UserError
from segdistill.data.transforms import normalize
from segdistill.export.onnx_file import ForwardSession, OnnxPredictor, write_float32, write_int8
from segdistill.formats.header import Header
from segdistill.nets.device import Compute, TorchPredictor
from segdistill.nets.registry import build
from segdistill.nets.resize import upsample
from segdistill.scoring.evaluate import classes_of

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES, TRACED_PX, OPSET = 7, (64, 96), 18
ARCHS = (
    "deeplabv3plus_mobilenet",
    "deeplabv3_mobilenet_lite",
    "deeplabv3plus_timm:tf_efficientnet_lite0",
    "lraspp_timm:mobilenetv3_small_050",
)
COMPUTE = Compute(torch.device("cpu"), torch.float32, 1)


def frames(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth noise uint8 (N, H, W, 3)."""
    coarse = torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (count, 3, height // 8, width // 8)))
    return upsample(coarse, (height, width)).permute(0, 2, 3, 1).numpy().astype(np.uint8)


def header_of(path) -> Header:
    return OnnxPredictor(path, 1).header


def settled(arch: str) -> torch.nn.Module:
    """A random net whose batch norms know their inputs, so that signals neither vanish nor explode."""
    torch.manual_seed(0)
    net = build(arch, CLASSES).train()
    with torch.no_grad():
        for seed in range(8):
            net(normalize(torch.from_numpy(frames(4, *TRACED_PX, seed=seed))))
    return net.eval()


class Written:
    """A network, its header and its float32 file."""

    def __init__(self, arch: str, folder) -> None:
        self.net, self.header, self.path = settled(arch), Header.of_net(arch, CLASSES, 16), folder / f"{arch}.onnx"
        write_float32(self.path, self.net, self.header, OPSET, TRACED_PX)


@pytest.fixture(scope="module", params=ARCHS)
def written(request, tmp_path_factory):
    return Written(request.param, tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    return Written("deeplabv3_mobilenet_lite", tmp_path_factory.mktemp("lite"))


@pytest.fixture(scope="module")
def int8(lite):
    path = lite.path.with_name("int8.onnx")
    write_int8(path, lite.net, lite.header, OPSET, frames(4, *TRACED_PX, seed=20))
    return path


@pytest.mark.parametrize(("count", "height", "width"), [(1, 64, 96), (3, 64, 96), (1, 96, 64), (2, 72, 136)])
def test_float32_gives_torchs_logits_at_any_size(written, count, height, width):
    images = frames(count, height, width, seed=9)
    logits, classes = OnnxPredictor(written.path, 1).logits_and_classes(images)
    expected_logits = TorchPredictor(written.net, COMPUTE).logits(images)
    expected_classes = classes_of(expected_logits, images.shape[1:3])
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    assert len(expected_classes.unique()) > 1
    assert (classes == expected_classes).float().mean() >= 0.999


def test_class_maps_are_bytes_of_the_frames_size(lite):
    classes = OnnxPredictor(lite.path, 1).classes(frames(2, 72, 136))
    assert (classes.dtype, classes.shape) == (np.uint8, (2, 72, 136))


def test_class_maps_without_logits_are_the_same(lite):
    predictor, images = OnnxPredictor(lite.path, 1), frames(2, 64, 96)
    assert np.array_equal(predictor.classes(images), predictor.logits_and_classes(images)[1].numpy())


def test_forward_session_gives_torchs_logits(written):
    images = frames(1, 72, 136, seed=5)
    with torch.no_grad():
        expected = written.net(normalize(torch.from_numpy(images)))
    found = torch.from_numpy(ForwardSession(written.path, 1).run(images))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_forward_session_starts_from_normalised_pixels(lite):
    (pixels,) = ForwardSession(lite.path, 1).session.get_inputs()
    assert (pixels.type, pixels.shape[1]) == ("tensor(float)", 3)


def test_file_is_valid(written):
    model = onnx.load(written.path)
    onnx.checker.check_model(model, full_check=True)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.checker.check_model(model, full_check=True)


def test_opset_is_the_one_of_params(lite, tmp_path):
    write_float32(tmp_path / "other.onnx", lite.net, lite.header, 20, TRACED_PX)
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


def test_metadata_hold_the_header(written):
    assert header_of(written.path) == written.header


def test_weights_are_in_the_file_itself(lite):
    assert not any(tensor.external_data for tensor in onnx.load(lite.path, load_external_data=False).graph.initializer)
    assert lite.path.stat().st_size > 4 * 4_000_000


def test_same_network_gives_the_same_bytes(lite, tmp_path):
    write_float32(tmp_path / "again.onnx", lite.net, lite.header, OPSET, TRACED_PX)
    assert (tmp_path / "again.onnx").read_bytes() == lite.path.read_bytes()


def test_export_does_not_change_the_network(lite, tmp_path):
    before = {key: value.clone() for key, value in lite.net.state_dict().items()}
    write_float32(tmp_path / "again.onnx", lite.net, lite.header, OPSET, TRACED_PX)
    assert all(torch.equal(value, before[key]) for key, value in lite.net.state_dict().items())


def test_int8_file_is_valid_and_says_that_it_is_int8(lite, int8):
    onnx.checker.check_model(onnx.load(int8), full_check=True)
    assert header_of(int8) == lite.header.with_history(quantised="int8")


def test_files_name_no_operator_set_that_they_do_not_use(lite, int8):
    """onnxruntime before 1.18 refuses files that name newer operator sets, used or not."""
    for path in (lite.path, int8):
        assert [entry.domain for entry in onnx.load(path).opset_import] == [""]


def test_int8_is_a_fraction_of_the_size(lite, int8):
    assert int8.stat().st_size < 0.35 * lite.path.stat().st_size


def test_int8_has_quantised_weights(int8):
    weights = [tensor for tensor in onnx.load(int8).graph.initializer if len(tensor.dims) == 4]
    assert {tensor.data_type for tensor in weights} == {TensorProto.INT8}


def test_no_sum_of_two_int8_products_exceeds_16_bits(int8):
    """Processors without VNNI add two products of an unsigned and a signed byte in 16 bits, and saturate."""
    weights = int8_weights(onnx.load(int8).graph)
    assert len(weights) > 40
    for name, rows in weights.items():
        largest_two = np.sort(np.abs(rows.astype(int)), axis=1)[:, -2:].sum(axis=1)
        assert 255 * largest_two.max() <= np.iinfo(np.int16).max, name


def int8_weights(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """The int8 weights (output channels, inputs of each) by name."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantised_of = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    found = {}
    for node in graph.node:
        if node.op_type in {"Conv", "MatMul", "Gemm"}:
            name = quantised_of[node.input[1]]
            if name in constants and constants[name].dtype == np.int8:
                outputs_first = constants[name] if node.op_type == "Conv" else constants[name].T
                if any(entry.name == "transB" and entry.i for entry in node.attribute):
                    outputs_first = constants[name]
                found[name] = outputs_first.reshape(len(outputs_first), -1)
    return found


EMULATED = """
import sys
sys.path[:] = {path!r}
import numpy as np
from segdistill.nets.onnx_session import open_session
images = np.load(sys.argv[2])
np.save(sys.argv[3], open_session(sys.argv[1], 1).run(["classes"], {{"image": images}})[0])
"""


@pytest.mark.slow
def test_int8_names_the_same_classes_on_a_processor_without_vnni(lite, int8, tmp_path):
    """qemu's user mode emulates a Haswell, which has AVX2 and no VNNI."""
    qemu = shutil.which("qemu-x86_64-static")
    if qemu is None or platform.machine() != "x86_64":
        pytest.skip("qemu-x86_64-static is not installed (Debian: qemu-user-static), or this is no x86-64 machine")
    images = frames(1, 64, 96, seed=30)
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "emulated.py").write_text(EMULATED.format(path=sys.path))
    files = [str(tmp_path / name) for name in ("emulated.py", "images.npy", "classes.npy")]
    command = [qemu, "-cpu", "Haswell", os.path.realpath(sys.executable), files[0], str(int8), *files[1:]]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert np.array_equal(np.load(files[2]), OnnxPredictor(int8, 1).classes(images))


@pytest.mark.parametrize("size_px", [TRACED_PX, (96, 72)])
def test_int8_agrees_with_float32_on_most_pixels(lite, int8, size_px):
    images = frames(2, *size_px, seed=30)
    classes, expected = (OnnxPredictor(path, 1).classes(images) for path in (int8, lite.path))
    assert (classes == expected).mean() > 0.8


# The share of pixels that keep their class, with random weights, whose logits are close: the more layers, the fewer.
KEPT = {
    "deeplabv3_mobilenet_v3_large": 0.8,
    "lraspp_mobilenet_v3_large": 0.8,
    "lraspp_timm:mobilenetv3_small_050": 0.8,
    "deeplabv3plus_timm:tf_efficientnet_lite0": 0.75,
}


@pytest.mark.parametrize("arch", KEPT)
def test_int8_keeps_float_logits(arch, tmp_path):
    float32, path = Written(arch, tmp_path), tmp_path / "int8.onnx"
    write_int8(path, float32.net, float32.header, OPSET, frames(4, *TRACED_PX, seed=20))
    (last,) = [node for node in onnx.load(path).graph.node if "logits" in node.output]
    assert all(node.op_type != "Pad" for node in onnx.load(path).graph.node)  # else a layer in float
    assert last.op_type != "DequantizeLinear"  # opening such a file aborts the process
    images = frames(2, 96, 72, seed=30)
    classes, expected = (OnnxPredictor(file, 1).classes(images) for file in (path, float32.path))
    assert (classes == expected).mean() > KEPT[arch]


def test_int8_of_the_same_images_gives_the_same_bytes(lite, int8, tmp_path):
    write_int8(tmp_path / "again.onnx", lite.net, lite.header, OPSET, frames(4, *TRACED_PX, seed=20))
    assert (tmp_path / "again.onnx").read_bytes() == int8.read_bytes()


def test_int8_follows_its_calibration_images(lite, int8, tmp_path):
    write_int8(tmp_path / "dark.onnx", lite.net, lite.header, OPSET, frames(1, *TRACED_PX) // 16)
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
def test_file_of_another_kind_is_refused_by_name(bad_file):
    with pytest.raises(UserError) as error:
        OnnxPredictor(bad_file, 1)
    assert str(bad_file) in str(error.value)


@pytest.mark.parametrize("bad_file", ["foreign"], indirect=True)
def test_refusal_names_inputs_and_outputs_found(bad_file):
    with pytest.raises(UserError, match=r"has inputs \['x'\] and outputs \['y'\]; a student has \['image'\]"):
        header_of(bad_file)


def test_file_without_metadata_is_refused(lite, tmp_path):
    model = onnx.load(lite.path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(UserError, match=r"bare\.onnx"):
        header_of(tmp_path / "bare.onnx")


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"arch": "deeplabv3_mobilenet_lite", "output_stride": 16}'])
def test_metadata_that_describe_no_network_are_refused(lite, tmp_path, text):
    model = onnx.load(lite.path)
    model.metadata_props[0].value = text
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(UserError, match=r"odd\.onnx: its header does not describe a network"):
        header_of(tmp_path / "odd.onnx")


def test_failed_export_leaves_no_file(tmp_path, lite):
    with pytest.raises(Exception, match="JSON serializable"):
        write_float32(
            tmp_path / "net.onnx", lite.net, lite.header.with_history(params={"note": object()}), OPSET, TRACED_PX
        )
    assert list(tmp_path.iterdir()) == []
