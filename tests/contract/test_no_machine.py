"""No file of the repository knows the machine it was written on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def text_files() -> dict[str, str]:
    """Text of every file that git tracks or would add."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("the tree is no git repository")
    texts = {}
    for name in filter(None, done.stdout.split("\0")):
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b"\0"
        if b"\0" not in content:
            texts[name] = content.decode("utf-8")
    return texts


# Written with brackets, so that they do not find themselves.
MACHINE_PATH = re.compile(r"(?<![\w.~}/-])/(?:wor[k]|hom[e]|roo[t]|User[s]|mn[t])/\w|\b[A-Z]:\\User[s]")


PRIVATE_HOST = re.compile(
    r"://[^\s/]*?(?:10\.\d+\.\d+\.\d+|192\.168\.\d+\.\d+|172\.(?:1[6-9]|2\d|3[01])\.\d+\.\d+|\.(?:internal|local|corp|lan))\b"
    r"|index-ur[l]|trusted-hos[t]"
)


@pytest.mark.parametrize("pattern", [MACHINE_PATH, PRIVATE_HOST], ids=["path", "host"])
def test_no_file_knows_a_machine(pattern):
    lines = [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in text_files().items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]
    assert lines == []


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (MACHINE_PATH, "/".join(["", "home", "me", "data"])),
        (MACHINE_PATH, "root: " + "/".join(["", "work", "main"])),
        (PRIVATE_HOST, "http:" + "//10.0.0.7:5000"),
        (PRIVATE_HOST, "https:" + "//pypi.corp/simple"),
        (PRIVATE_HOST, "--index" + "-url x"),
    ],
)
def test_what_knows_a_machine_is_found(pattern, text):
    assert pattern.search(text)
