"""Print one digest for every result of a finished project, so that two runs of the pipeline can be compared.

    python tools/digests.py [PROJECT] > digests.txt

A digest covers what a change of code must keep: the tensors of each .safetensors file (not its header, which names a
revision), the class maps that each ONNX file gives of the first val frames, the prepared arrays, the teacher's logits,
and every metric except timings. It imports nothing of the package, so it reads projects of any revision.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
from safetensors.numpy import load_file

FRAMES = 4
# Timings, revisions and sizes of files whose metadata names a revision.
LEFT_OUT = ("_ms", "git_revision", "sha256", "s_per_image", "conditions", "how", "bytes", "_mb", "mb", "row_key", "p50")


def main() -> None:
    """Print `digest  path` of every result, sorted by path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", nargs="?", default=".", type=Path, help="folder in which the pipeline ran")
    project = parser.parse_args().project
    rows = {}
    for path in sorted(project.glob("data/prepared/*/*.npy")) + sorted(project.glob("data/teacher_logits/*/*.npy")):
        whole = path.with_name(re.sub(r"-\d{5}\.npy$", ".npy", path.name))  # the name of an array that is in shards
        rows.setdefault(whole, []).append(np.load(path, mmap_mode="r"))
    rows = {path: [np.concatenate(shards) if len(shards) > 1 else shards[0]] for path, shards in rows.items()}
    frames = rows[project / "data/prepared/val/images.npy"][0][:FRAMES]
    for path in sorted(project.glob("models/**/*.safetensors")):
        rows[path] = [part for name, tensor in sorted(load_file(path).items()) for part in (name, tensor)]
    for path in sorted(project.glob("models/**/*.onnx")):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        rows[path] = [session.run(["classes"], {"image": np.array(frames[i : i + 1])})[0] for i in range(len(frames))]
    for path in sorted(project.glob("metrics/**/*.json")):
        if path.name not in ("benchmark.json", "summary.json"):
            rows[path] = [json.dumps(without_timings(json.loads(path.read_text())), sort_keys=True)]
    for path in sorted(project.glob("metrics/**/*.csv")):
        if path.name != "summary.csv":
            rows[path] = [json.dumps(list(csv.reader(path.read_text().splitlines())))]
    for path, parts in rows.items():
        print(digest(parts), path.relative_to(project))


def without_timings(value: object) -> object:
    """Return a JSON value without the keys that hold timings, sizes or revisions."""
    if not isinstance(value, dict):
        return value
    kept = {key: inner for key, inner in value.items() if not any(key.endswith(end) for end in LEFT_OUT)}
    return {key: without_timings(inner) for key, inner in kept.items()}


def digest(parts: list) -> str:
    """Return a short hash of texts and arrays, in their order."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            found.update(part.encode())
        else:
            found.update(f"{part.dtype}{part.shape}".encode())
            found.update(np.ascontiguousarray(part).tobytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    main()
