"""Everything that reads a file from elsewhere, fed with damaged files. Run it with: python tests/fuzz/readers.py --help

Input N of a reader and a seed is always the same file. A reader may give a value, or raise what the stages turn into
one line; another exception, a signal, 2 s of a processor or 1 GB more memory is a failure.
"""

from __future__ import annotations

import argparse
import base64
import random
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import seeds as valid
import torch
from formats import (
    damaged_npy,
    damaged_onnx,
    damaged_png,
    damaged_safetensors,
    damaged_safetensors_header,
    damaged_zip_fields,
    in_zip,
)
from mutations import Mutation, damaged, damaged_json, damaged_text
from opened import (
    NetHeader,
    read_class_maps,
    read_curves,
    read_frame_pair,
    read_frame_pair_with_pillow,
    read_index_and_split,
    read_manifest,
    read_npy,
    read_onnx,
    read_params,
    read_safetensors,
    read_torch,
    read_zip,
)
from workers import ACCEPTED, REFUSED, Result, outcome_of, results


class Reader(NamedTuple):
    """One way into the program: valid files, how they are damaged, and what reads them.

    `read` gets the path of a file named `file`, in a folder that `set_up` has put the files around it into.
    """

    name: str
    file: str
    seeds: Callable[[], list[bytes]]
    damage: tuple[Mutation, ...]
    read: Callable[[Path], object]
    set_up: Callable[[Path], None] = lambda folder: None


READERS = (
    Reader("png pair, kornia-rs", "a.png", valid.pngs, (damaged_png,), read_frame_pair),
    Reader("png pair, Pillow", "a.png", valid.pngs, (damaged_png,), read_frame_pair_with_pillow),
    Reader("zip", "a.zip", valid.zips, (damaged_zip_fields, in_zip(damaged_png)), read_zip),
    Reader("npy", "a.npy", valid.npys, (damaged_npy,), read_npy),
    Reader("npz", "a.npz", valid.npzs, (damaged_zip_fields, in_zip(damaged_npy)), read_class_maps),
    Reader("safetensors", "a.safetensors", valid.safetensors, (damaged_safetensors,), read_safetensors),
    Reader("net", "a.json", valid.net_headers, (damaged_safetensors_header,), NetHeader()),
    Reader("pth", "a.pth", valid.checkpoints, (damaged_zip_fields, in_zip(damaged)), read_torch),
    Reader("pth, legacy", "a.pth", valid.legacy_checkpoints, (damaged,), read_torch),
    Reader("onnx", "a.onnx", valid.onnx_models, (damaged_onnx,), read_onnx),
    Reader("index", "index.json", valid.indices, (damaged_json,), read_index_and_split, valid.write_split),
    Reader("manifest", "manifest.json", valid.manifests, (damaged_json,), read_manifest, valid.write_logits),
    Reader("curve", "a.csv", valid.curves, (damaged_text,), read_curves),
    Reader("params", "params.yaml", valid.params_files, (damaged_text,), read_params),
)


def input_of(reader: Reader, seeds: list[bytes], seed: int, number: int) -> bytes:
    """Return the file that is input `number`: half are damaged anywhere, half where their format has its joints."""
    rng = random.Random(f"{reader.name}/{seed}/{number}")
    content = rng.choice(seeds)
    if rng.random() < 0.5:
        return damaged(rng, content, seeds)
    return rng.choice(reader.damage)(rng, content, seeds)


class Findings(NamedTuple):
    """What became of the inputs of one reader."""

    reader: Reader
    all: list[Result]

    @property
    def failures(self) -> list[Result]:
        return [result for result in self.all if result.is_failure]

    def row(self) -> str:
        """Return a line of the table."""
        counts = [sum(result.outcome == kind for result in self.all) for kind in (ACCEPTED, REFUSED)]
        slowest, peak = max(r.cpu_ms for r in self.all), max(r.peak_mb for r in self.all)
        cells = (self.reader.name, len(self.all), *counts, len(self.failures), f"{slowest:.0f}", f"{peak:.0f}")
        return f"{cells[0]:<20}" + "".join(f"{cell:>12}" for cell in cells[1:])


HEADING = f"{'reader':<20}" + "".join(
    f"{cell:>12}" for cell in ("inputs", "accepted", "refused", "failures", "slowest ms", "peak MB")
)


def fuzz(reader: Reader, inputs: int, seed: int, first: int = 0) -> Findings:
    """Let `reader` read inputs `first` to `first + inputs - 1` of `seed`."""
    seeds = reader.seeds()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reader.set_up(folder)

        def prepare(number: int) -> Callable[[], object]:
            (folder / reader.file).write_bytes(input_of(reader, seeds, seed, number))
            return lambda: reader.read(folder / reader.file)

        return Findings(reader, list(results(prepare, range(first, first + inputs))))


def refused_seeds(reader: Reader) -> list[str]:
    """Return how the reader ends on those valid files that it does not accept: with any, the fuzzing says little."""
    outcomes = []
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / reader.file
        reader.set_up(file.parent)
        for content in reader.seeds():
            file.write_bytes(content)
            outcomes.append(outcome_of(lambda: reader.read(file)))
    return [outcome for outcome in outcomes if outcome != ACCEPTED]


def reproduction(reader: Reader, seed: int, result: Result) -> str:
    """Return how to see a failure again: the command, and the file where it is small."""
    content = input_of(reader, reader.seeds(), seed, result.number)
    packed = base64.b85encode(zlib.compress(content, 9)).decode()
    shown = f"zlib.decompress(base64.b85decode({packed!r}))" if len(packed) < 2000 else f"{len(content)} bytes"
    command = f"python tests/fuzz/readers.py --reader '{reader.name}' --seed {seed} --first {result.number} --inputs 1"
    return f"{reader.name}, seed {seed}, input {result.number}: {result.outcome}\n  {command}\n  {shown}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="in all, or of the one reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each reader")
    parser.add_argument("--reader", choices=[reader.name for reader in READERS], help="one of them alone")
    parser.add_argument("--save", type=Path, help="write the first input here, and read nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [reader for reader in READERS if given.reader in (None, reader.name)]
    if given.save:
        given.save.write_bytes(input_of(chosen[0], chosen[0].seeds(), given.seed, given.first))
        return
    print(HEADING)
    failures = []
    for place, reader in enumerate(chosen):
        share = (given.inputs * (place + 1)) // len(chosen) - (given.inputs * place) // len(chosen)
        findings = fuzz(reader, share, given.seed, given.first)
        print(findings.row(), flush=True)
        failures += [reproduction(reader, given.seed, failure) for failure in findings.failures]
    print("\n".join(failures))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
