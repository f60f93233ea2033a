"""Label maps of any values, from the PNG to the metrics, against plain loops over pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from segdistill.core.errors import UserError
from segdistill.formats.classes import IGNORE
from segdistill.prepare.cityscapes import CLASSES, CODING, LABEL_ID_OF_TRAIN_ID, LABELS, TRAIN_ID_OF_LABEL_ID
from segdistill.prepare.images import decode_label_ids
from segdistill.prepare.label_coding import SHOWN
from segdistill.scoring.confusion import Confusion
from segdistill.scoring.evaluate import classes_of
from support.png_decoders import DECODERS, decoding_with

pytestmark = pytest.mark.usefixtures("one_thread")
VOID = IGNORE
often = settings(max_examples=60, deadline=None, derandomize=True, database=None)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def maps_of(values, shapes=sizes):
    return shapes.flatmap(lambda shape: arrays(np.uint8, shape, elements=values))


@pytest.fixture(params=DECODERS, scope="module")  # hypothesis refuses one that is made anew for each test
def decoder(request):
    with decoding_with(request.param) as name:
        yield name


@often
@given(label_ids=maps_of(st.integers(0, 33) | st.integers(0, 255)), palette=st.booleans())
def test_label_ids_survive_their_png_or_all_unknown_ones_are_named(decoder, label_ids, palette):
    image, stream = Image.fromarray(label_ids), io.BytesIO()
    if palette:
        image.putpalette(bytes(range(256)) * 3)
    image.save(stream, "PNG")
    unknown = sorted({int(value) for value in label_ids.flat if value > 33})
    decoded = decode_label_ids(stream.getvalue())
    assert np.array_equal(decoded, label_ids)
    if not unknown:
        assert np.array_equal(CODING.classes(decoded), TRAIN_ID_OF_LABEL_ID[label_ids])
        return
    first = ", ".join(map(str, unknown[:SHOWN]))
    more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
    with pytest.raises(UserError, match=f"^label ids {first}{more} are not in the table"):
        CODING.classes(decoded)


@often
@given(label_ids=maps_of(st.integers(0, 255)))
def test_train_ids_are_the_tables(label_ids):
    table = {label.id: label.train_id for label in LABELS if label.id >= 0}
    train_ids = TRAIN_ID_OF_LABEL_ID[label_ids]
    assert train_ids.tolist() == [[table.get(value, VOID) for value in row] for row in label_ids.tolist()]
    valid = train_ids != VOID
    assert np.array_equal(LABEL_ID_OF_TRAIN_ID[train_ids][valid], label_ids[valid])


def plain_metrics(pairs: list[tuple[int, int]], classes: int) -> dict:
    """Return the metrics of (predicted, true) pixels, void among the true ones, one class after the other."""
    valid = [(p, t) for p, t in pairs if t != VOID]
    iou, recall, frequency = [], [], []
    for c in range(classes):
        both = sum(p == t == c for p, t in valid)
        either = sum(c in (p, t) for p, t in valid)
        true = sum(t == c for _, t in valid)
        iou.append(both / either if either else None)
        recall.append(both / true if true else None)
        frequency.append(true / len(valid) if valid else 0)
    there = [value for value in iou if value is not None]
    recalled = [value for value in recall if value is not None]
    return {
        "overall_acc": sum(p == t for p, t in valid) / len(valid) if valid else None,
        "mean_acc": sum(recalled) / len(recalled) if recalled else None,
        "freqw_acc": sum(f * i for f, i in zip(frequency, iou, strict=True) if f) if valid else None,
        "mean_iou": sum(there) / len(there) if there else None,
        "class_iou": iou,
    }


@st.composite
def scored_maps(draw):
    """Draw (classes, predicted, labels): few classes or all, any share of void."""
    classes = draw(st.sampled_from([1, 2, 3, CLASSES]))
    shape = st.just(draw(sizes))
    predicted = draw(maps_of(st.integers(0, classes - 1), shape))
    return classes, predicted, draw(maps_of(st.integers(0, classes - 1) | st.just(VOID), shape))


@often
@given(scored_maps())
def test_metrics_are_those_of_plain_loops(drawn):
    classes, predicted, labels = drawn
    confusion = Confusion(classes)
    for rows in (slice(0, 2), slice(2, None)):  # in two parts
        confusion.add(torch.from_numpy(predicted[rows].copy()), torch.from_numpy(labels[rows].copy()))
    found, expected = confusion.metrics(), plain_metrics([*zip(predicted.flat, labels.flat, strict=True)], classes)
    assert found.keys() == expected.keys()
    for name in expected.keys() - {"class_iou"}:
        assert found[name] == (None if expected[name] is None else pytest.approx(expected[name], abs=1e-12)), name
    for value, wanted in zip(found["class_iou"], expected["class_iou"], strict=True):
        assert value == (None if wanted is None else pytest.approx(wanted, abs=1e-12))


@often
@given(maps_of(st.integers(0, CLASSES - 1)))
def test_the_classes_of_plain_logits_are_the_map(labels):
    logits = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), CLASSES).permute(2, 0, 1)[None].float()
    assert np.array_equal(classes_of(logits, labels.shape)[0].numpy(), labels)
