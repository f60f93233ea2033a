"""Memory that a net freed is kept for its next pass; counted in page faults, of a process of its own."""

import subprocess
import sys

import pytest

# Prints the page faults of some passes over a frame, and a hash of what they gave.
PASSES = """
import hashlib, resource, sys
import torch
from segdistill.nets.freed_memory import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
torch.set_num_threads(1)
torch.manual_seed(0)
net = torch.nn.Sequential(*(torch.nn.Conv2d(16, 16, 1) for _ in range(3)))
frame = torch.rand(1, 16, 800, 800)  # 39 MiB a layer: more than the C library ever keeps of itself
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
with torch.inference_mode():
    for _ in range(24):
        given = net(frame)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, hashlib.sha256(given.numpy()).hexdigest())
"""


def passes(kind: str) -> tuple[str, int, str]:
    told = subprocess.run([sys.executable, "-c", PASSES, kind], check=True, capture_output=True, text=True).stdout
    kept, faults, result = told.split()
    return kept, int(faults), result


def test_later_passes_find_the_memory_of_earlier_ones():
    kept, faults, result = passes("keep")
    if kept == "False":
        pytest.skip("the C library is not GNU's")
    _, usual_faults, usual_result = passes("as it comes")
    assert result == usual_result
    assert usual_faults > 24 * 2 * 10_000  # 39 MiB are so many pages, and a pass asks for several such blocks
    # Blocks are aligned, so it takes some passes, more or fewer by where the heap begins, until each fits into a gap.
    assert faults < usual_faults / 2
