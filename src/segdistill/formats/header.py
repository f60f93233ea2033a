"""The header of weights: which network they are and how it was trained, in safetensors and ONNX files.

Reading one loads no torch, so the report and the command line can read headers quickly.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from segdistill.core.errors import UserError
from segdistill.formats.classes import MAX_CLASSES, ClassTable, class_names_of
from segdistill.params.archs import check_arch

KEY = "segdistill"  # in the metadata of both kinds of file
# ImageNet statistics of RGB in 0..1. The public checkpoints and torchvision's backbones are trained with them.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
NORMALISATION = {"mean": list(MEAN), "std": list(STD), "range": "0..1", "order": "RGB"}
_TABLE_KEYS = ("class_names", "label_ids", "colors")
_HISTORY = {"params": dict, "seed": int, "step": int, "float_layers": list} | dict.fromkeys(
    ("teacher_sha256", "git_revision", "weights_sha256", "quantised"), str
)


@dataclass(frozen=True)
class Header:
    """How to rebuild a network and normalise its input, and how it was trained.

    The facts after `table` are those of a finished training; a network without a history leaves them None.

    Attributes:
        arch: name of the network, a file of `segdistill/networks`.
        classes: number of outputs.
        output_stride: input pixels per feature pixel at the end of the backbone.
        table: names, label ids and colours of the classes; None in files of other projects.
        params: resolved settings of the training, JSON-like.
        step: optimizer steps of the last phase.
        teacher_sha256: the teacher that the student learned from; None for a control.
        weights_sha256: ONNX files only, the safetensors file that was exported.
        quantised: ONNX files only, "int8" or None.
        float_layers: int8 files only, the layers that were left in float32; None where there are none.
    """

    arch: str
    classes: int
    output_stride: int
    table: ClassTable | None = None
    params: dict[str, Any] | None = None
    seed: int | None = None
    step: int | None = None
    teacher_sha256: str | None = None
    git_revision: str | None = None
    weights_sha256: str | None = None
    quantised: str | None = None
    float_layers: list[str] | None = None

    @classmethod
    def of_net(cls, arch: str, classes: int | ClassTable, output_stride: int) -> Header:
        """Return the header of a network without a history."""
        if isinstance(classes, ClassTable):
            return cls(arch, len(classes), output_stride, classes)
        return cls(arch, classes, output_stride)

    @classmethod
    def parse(cls, text: str, source: str | Path) -> Header:
        """Return the header in `text`, which the file `source` holds.

        Raises:
            UserError: it describes no network that this version can build.
        """
        try:
            facts = json.loads(text)
            missing = [key for key in ("arch", "classes", "output_stride") if key not in facts]
            if missing:
                raise UserError(f"it does not say {', '.join(missing)}")
            if type(facts["classes"]) is not int or not 1 <= facts["classes"] <= MAX_CLASSES:
                raise UserError(f"{facts['classes']!r:.40} classes; allowed: 1 to {MAX_CLASSES}")
            check_arch(facts["arch"], facts["output_stride"])
            table = None
            if "class_names" in facts and len(names := class_names_of(facts)) != facts["classes"]:
                raise UserError(f"{len(names)} class_names of {facts['classes']} classes")
            if all(key in facts for key in _TABLE_KEYS):
                table = ClassTable.of_facts(facts)
            if facts.get("normalisation", NORMALISATION) != NORMALISATION:
                raise UserError(f"normalisation {facts['normalisation']!r:.80}; this version feeds {NORMALISATION}")
            for key, kind in _HISTORY.items():
                if facts.get(key) is not None and type(facts[key]) is not kind:
                    raise UserError(f"{key}: found {facts[key]!r:.40}; allowed is a value of type {kind.__name__}")
            known = {key: facts[key] for key in cls.__dataclass_fields__ if key in facts}
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{source}: its header does not describe a network: {error}") from None
        return cls(**(known | {"table": table}))

    def text(self) -> str:
        """Return the header as JSON, as files hold it, without unknown facts."""
        table = {} if self.table is None else self.table.facts()
        facts = {key: value for key, value in asdict(self).items() if key != "table" and value is not None}
        if self.params is not None:  # a control says that it has no teacher
            facts.setdefault("teacher_sha256", None)
        return json.dumps(table | facts | {"normalisation": NORMALISATION}, sort_keys=True)

    def with_history(self, **facts: Any) -> Header:
        """Return the header with the facts that a training or an export adds."""
        return replace(self, **facts)

    def check_is(self, expected: Header, source: str | Path) -> None:
        """Raise a UserError when the file `source` holds another network than `expected`."""
        for key in ("arch", "classes", "output_stride"):
            found, needed = getattr(self, key), getattr(expected, key)
            if found != needed:
                raise UserError(f"{source}: {key} is {found!r} there, {needed!r} is needed")


def header_text(path: str | Path) -> str | None:
    """Return the text of the header of a safetensors file; None in files of other projects.

    Raises:
        UserError: no such file, or no safetensors file.
    """
    try:
        with safe_open(path, framework="np") as opened:
            return (opened.metadata() or {}).get(KEY)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: no safetensors file ({error})") from None


def read_header(path: str | Path) -> Header:
    """Return the header of a safetensors file that this project wrote.

    Raises:
        UserError: no such file, no safetensors file, no header, or one that describes no network.
    """
    text = header_text(path)
    if text is None:
        raise UserError(f"{path}: its header does not say which network it holds; name the network instead")
    return Header.parse(text, path)


def header_if_any(path: str | Path) -> Header | None:
    """Return the header of a weights file; None in files of torch and of other projects.

    Raises:
        UserError: a header of this project that describes no network.
    """
    try:
        text = header_text(path)
    except UserError:  # a file of torch
        return None
    return None if text is None else Header.parse(text, path)
