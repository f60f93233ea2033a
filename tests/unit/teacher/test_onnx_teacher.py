"""ONNX teachers of any origin: every form of input gives the same logits; files that do not fit are refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from segdistill.core.errors import UserError
from segdistill.export.onnx_file import write_float32
from segdistill.formats.classes import ClassTable
from segdistill.formats.header import MEAN, STD, Header
from segdistill.nets.device import Compute, TorchPredictor
from segdistill.nets.registry import build
from segdistill.teacher.onnx_teacher import OnnxTeacher, write_in_one_file
from support.onnx_models import cell_logits, model, weights, write_model

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES = 3
IMAGES = np.random.default_rng(1).integers(0, 256, (2, 16, 24, 3), np.uint8)
WEIGHTS = weights(CLASSES)
TABLE = ClassTable(("a", "b", "c"), (1, 2, 3), ((1, 0, 0), (2, 0, 0), (3, 0, 0)))


def opened(path, classes: int = CLASSES, mean=MEAN, std=STD) -> OnnxTeacher:
    return OnnxTeacher(path, classes, 1, mean, std)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize(
    "shape",
    [
        ("n", 3, "h", "w"),
        ("n", "h", "w", 3),
        (1, 3, "h", "w"),
        (None, 3, None, None),
        ("n", 3, 16, 24),
        (1, 16, 24, 3),
    ],
    ids=str,
)
def test_every_form_of_input_gives_the_same_logits(tmp_path, shape, dtype):
    teacher = opened(write_model(tmp_path / "t.onnx", WEIGHTS, shape, dtype))
    found = teacher.logits(IMAGES)
    pixels = IMAGES if dtype == "uint8" else (IMAGES / 255 - MEAN) / STD
    assert found.dtype == torch.float32
    expected = cell_logits(pixels, WEIGHTS)
    np.testing.assert_allclose(found, expected, atol={"float16": 1e-2}.get(dtype, 1e-4) * np.abs(expected).max())
    assert teacher.size_px == ((16, 24) if 16 in shape else None)


def test_floats_are_normalised_by_mean_and_std_of_params(tmp_path):
    teacher = opened(write_model(tmp_path / "t.onnx", WEIGHTS), mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))
    np.testing.assert_allclose(teacher.logits(IMAGES), cell_logits(IMAGES, WEIGHTS), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("outputs", [("out",), ("aux", "logits")])
def test_output_named_logits_is_taken_or_else_the_first(tmp_path, outputs):
    found = opened(write_model(tmp_path / "t.onnx", WEIGHTS, outputs=outputs)).logits(IMAGES)
    np.testing.assert_allclose(found, cell_logits((IMAGES / 255 - MEAN) / STD, WEIGHTS), rtol=1e-3, atol=1e-3)


def test_number_of_classes_is_checked_where_the_graph_does_not_say_it(tmp_path):
    unknown = model(np.concatenate([WEIGHTS] * 2))
    # As of a graph whose exporter lost track of shapes: half of the classes, by a number that is an input to the graph.
    unknown.graph.initializer.append(numpy_helper.from_array(np.array([CLASSES]), "end"))
    unknown.graph.initializer.append(numpy_helper.from_array(np.array([0]), "start"))
    unknown.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    unknown.graph.input.append(helper.make_tensor_value_info("end", TensorProto.INT64, (1,)))
    unknown.graph.node[-1].CopyFrom(helper.make_node("Slice", ["cells", "start", "end", "axis"], ["out"]))
    unknown.graph.output[0].CopyFrom(helper.make_tensor_value_info("out", TensorProto.FLOAT, ("n", "c", "h", "w")))
    onnx.save(unknown, tmp_path / "t.onnx")
    assert opened(tmp_path / "t.onnx").logits(IMAGES).shape == (2, CLASSES, 4, 6)
    with pytest.raises(UserError, match=r"t\.onnx: found logits \[2, 3, 4, 6\] of an input \[2, 3, 16, 24\]; allowed"):
        opened(tmp_path / "t.onnx", classes=4).logits(IMAGES)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return torch.log_softmax(torch.from_numpy(logits), dim=1).numpy()


def test_probabilities_are_turned_into_logits_with_a_warning(tmp_path, capsys):
    teacher = opened(write_model(tmp_path / "t.onnx", WEIGHTS, kind="probabilities"))
    found = teacher.logits(IMAGES)
    teacher.logits(IMAGES)
    expected = log_softmax(cell_logits((IMAGES / 255 - MEAN) / STD, WEIGHTS))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert capsys.readouterr().err.count("t.onnx: output out holds probabilities, not logits") == 1


def test_probabilities_rounded_to_zero_give_finite_logits(tmp_path):
    found = opened(write_model(tmp_path / "t.onnx", 1000 * WEIGHTS, kind="probabilities")).logits(IMAGES)
    assert found.isfinite().all()
    assert torch.equal(found.argmax(1), torch.from_numpy(cell_logits((IMAGES / 255 - MEAN) / STD, WEIGHTS)).argmax(1))


def test_logits_between_0_and_1_stay_logits_with_a_warning(tmp_path, capsys):
    small = np.abs(WEIGHTS) / 2000
    found = opened(write_model(tmp_path / "t.onnx", small, dtype="uint8")).logits(IMAGES)
    np.testing.assert_allclose(found, cell_logits(IMAGES, small), rtol=1e-3)
    assert found.min() >= 0 and found.max() <= 1
    said = capsys.readouterr().err
    assert "t.onnx: output out is between 0 and 1, as after Sigmoid" in said
    assert "probabilities" not in said


def test_logits_of_both_signs_are_taken_without_a_line(tmp_path, capsys):
    found = opened(write_model(tmp_path / "t.onnx", WEIGHTS)).logits(IMAGES)
    assert found.min() < 0
    assert capsys.readouterr().err == ""


REFUSED = {
    "grey": (
        {"weights_C344": WEIGHTS[:, :1], "shape": ("n", 1, "h", "w")},
        r"found inputs x tensor\(float\) \['n', 1, 'h', 'w'\]; allowed is one, float or uint8, of shape",
    ),
    "a fixed batch": (
        {"shape": (4, 3, "h", "w")},
        r"found input x \[4, 3, 'h', 'w'\]; allowed is a batch of 1 or of any size",
    ),
    "half a size": ({"shape": ("n", 3, 16, "w")}, "allowed is a height and width that are both fixed or both not"),
    "other classes": (
        {"weights_C344": weights(5)},
        r"found output out tensor\(float\) \['n', 5, .*\]; allowed is one of 3 classes",
    ),
    "class maps": ({"kind": "classes"}, r"found output out tensor\(int64\).*; allowed is logits, float of shape"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_input_or_output_that_does_not_fit_is_refused(tmp_path, case):
    options, said = REFUSED[case]
    write_model(tmp_path / "t.onnx", **({"weights_C344": WEIGHTS} | options))
    with pytest.raises(UserError, match=rf"^teacher\.checkpoint: .*t\.onnx: .*{said}"):
        opened(tmp_path / "t.onnx")


@pytest.mark.parametrize(("content", "said"), [(None, "no such file"), (b"", "no readable"), (b"onnx", "no readable")])
def test_file_that_is_no_model_is_refused(tmp_path, content, said):
    if content is not None:
        (tmp_path / "t.onnx").write_bytes(content)
    with pytest.raises(UserError, match=rf"teacher\.checkpoint: .*t\.onnx.*{said}"):
        opened(tmp_path / "t.onnx")


def test_size_that_the_file_does_not_run_at_is_named(tmp_path):
    fixed = model(WEIGHTS)
    node = helper.make_node("Reshape", ["cells", "shape"], ["out"])
    del fixed.graph.node[-1]
    fixed.graph.node.append(node)
    fixed.graph.initializer.append(numpy_helper.from_array(np.array([-1, CLASSES, 4, 6]), "shape"))
    onnx.save(fixed, tmp_path / "t.onnx")
    assert opened(tmp_path / "t.onnx").logits(IMAGES).shape == (2, CLASSES, 4, 6)
    with pytest.raises(UserError, match=r"t\.onnx: does not run on an input \[2, 3, 16, 20\]"):
        opened(tmp_path / "t.onnx").logits(IMAGES[:, :, :20])


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A network in torch, and its exported file."""
    torch.manual_seed(0)
    net = build("deeplabv3_mobilenet_lite", CLASSES).eval()
    header, folder = Header.of_net("deeplabv3_mobilenet_lite", TABLE, 16), tmp_path_factory.mktemp("student")
    write_float32(folder / "float32.onnx", net, header, 18, (32, 48))
    return net, folder / "float32.onnx"


@pytest.mark.parametrize("size_px", [(32, 48), (48, 80)])
def test_exported_student_gives_the_logits_of_its_network(student, size_px):
    net, file = student
    images = np.random.default_rng(2).integers(0, 256, (2, *size_px, 3), np.uint8)
    expected = TorchPredictor(net, Compute(torch.device("cpu"), torch.float32, 1)).logits(images)
    np.testing.assert_allclose(opened(file).logits(images), expected, atol=1e-4)


def test_exported_student_brings_its_class_table(student):
    header = opened(student[1]).header
    assert header.table == TABLE
    assert header.classes == CLASSES


def test_copy_includes_external_weights(tmp_path):
    large = weights(70)
    onnx.save(model(large), tmp_path / "t.onnx", save_as_external_data=True, size_threshold=0, location="t.onnx.data")
    assert (tmp_path / "t.onnx.data").stat().st_size > 10_000
    (tmp_path / "kept").mkdir()
    for name in ("one", "two"):
        write_in_one_file(tmp_path / "t.onnx", tmp_path / "kept" / f"{name}.onnx")
    expected = opened(tmp_path / "t.onnx", classes=70).logits(IMAGES)
    for file in (tmp_path / "t.onnx", tmp_path / "t.onnx.data"):
        file.unlink()
    assert torch.equal(opened(tmp_path / "kept" / "one.onnx", classes=70).logits(IMAGES), expected)
    assert (tmp_path / "kept" / "one.onnx").read_bytes() == (tmp_path / "kept" / "two.onnx").read_bytes()


def test_copy_includes_external_constants(tmp_path):
    given = model(weights(70))
    constants = [
        onnx.helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in given.graph.initializer
    ]
    nodes = [*constants, *given.graph.node]
    del given.graph.initializer[:], given.graph.node[:]
    given.graph.node.extend(nodes)
    elsewhere = {"save_as_external_data": True, "size_threshold": 0, "location": "w.data", "convert_attribute": True}
    onnx.save(given, tmp_path / "t.onnx", **elsewhere)
    expected = opened(tmp_path / "t.onnx", classes=70).logits(IMAGES)
    (tmp_path / "kept").mkdir()
    write_in_one_file(tmp_path / "t.onnx", tmp_path / "kept" / "t.onnx")
    assert torch.equal(opened(tmp_path / "kept" / "t.onnx", classes=70).logits(IMAGES), expected)


def test_file_without_its_external_weights_is_refused(tmp_path):
    onnx.save(model(weights(70)), tmp_path / "t.onnx", save_as_external_data=True, size_threshold=0, location="w.data")
    (tmp_path / "w.data").unlink()
    with pytest.raises(UserError, match=r"t\.onnx: no readable ONNX model"):
        opened(tmp_path / "t.onnx", classes=70)
    with pytest.raises(UserError, match=r"t\.onnx: cannot be copied with its weights"):
        write_in_one_file(tmp_path / "t.onnx", tmp_path / "copy.onnx")
