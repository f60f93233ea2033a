"""Hostile files and names: no code runs, no file fills the memory, and no file is written outside its folder."""

from __future__ import annotations

import copy
import zipfile
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from segdistill.nets.registry import build_uninitialized
from segdistill.prepare import cityscapes
from segdistill.prepare.file_tree import MAX_RATIO
from support.city_on_disk import random_frame, write_frame, zip_city
from support.finished_project import IMAGE, LABEL, Project
from support.hostile_files import GREYSCALE, RGB, RunsCode, chunk, png_of, zeros_compressed
from support.tiny_city import ARCH

MIB = 2**20
MEMBER = LABEL.removeprefix("raw/")


@pytest.fixture
def zipped(city: Project) -> Iterator[zipfile.ZipFile]:
    """Pack the city as two zips in zips/; yield the one with the labels, open for appending."""
    zip_city(city.path("raw"), city.path("zips"))
    city.set_params(data__root="zips")
    with zipfile.ZipFile(city.path("zips") / cityscapes.LABEL_ZIP, "a", zipfile.ZIP_DEFLATED) as archive:
        yield archive


@pytest.mark.parametrize(
    ("call", "path"), [("teacher_check", "teacher__checkpoint"), ("distill --run taught", "runs__taught__init")]
)
def test_a_pickle_that_would_run_code_does_not(project, refused, call, path):
    canary = project.path("created")
    state = build_uninitialized(ARCH, 19).state_dict()
    torch.save({"model_state": state, "extra": RunsCode(canary)}, project.path("hostile.pth"))
    project.set_params(**{path: "hostile.pth"})
    refused(call, ["hostile.pth: not a checkpoint that can be read safely", "expected tensors saved with torch.save"])
    assert not canary.exists()
    torch.load(project.path("hostile.pth"), weights_only=False)
    assert canary.exists(), "the file is harmless, and the test could not fail"


@pytest.mark.parametrize("name", ["/etc/outside.png", "../outside.png", f"gtFine/../../{MEMBER}", "..\\outside.png"])
def test_zip_members_that_lie_outside_are_refused(city, zipped, refused, name):
    zipped.writestr(name, b"")
    zipped.close()
    refused("prepare", [f"zips/{cityscapes.LABEL_ZIP}: {name}", "an absolute path or '..' are refused"])


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(city, zipped, refused):
    zipped.writestr(MEMBER, b"")
    zipped.close()
    refused("prepare", [f"zips/{cityscapes.LABEL_ZIP}: {MEMBER}", "several members of one name are refused"])


def test_a_member_that_bursts_open_is_refused(city, zipped, refused):
    zipped.writestr("gtFine/train/jena/jena_000000_000019_gtFine_labelIds.png", bytes(32 * MIB))
    zipped.close()
    expected = ["jena_000000_000019_gtFine_labelIds.png", f"{32 * MIB} bytes packed into ", "; allowed are "]
    refused("prepare", [*expected, "zip bombs are refused"], headroom_bytes=128 * MIB)


def test_members_that_share_their_bytes_are_refused(city, zipped, refused):
    """Each is below the bound; together they are 2 GB in an archive of some 300 kB."""
    zipped.writestr("gtFine/train/jena/jena_000000_000000_gtFine_labelIds.png", bytes(MIB))
    for number in range(1, 2000):
        member = copy.copy(zipped.infolist()[-1])
        member.filename = f"gtFine/train/jena/jena_000000_{number:06d}_gtFine_labelIds.png"
        zipped.filelist.append(member)
    zipped.close()
    allowed = MAX_RATIO * city.path(f"zips/{cityscapes.LABEL_ZIP}").stat().st_size
    refused("prepare", [f"{cityscapes.LABEL_ZIP}: 20", f"allowed are {allowed}"], headroom_bytes=128 * MIB)


def test_member_of_a_false_size_is_read_no_further(city, zipped, refused):
    (member,) = (one for one in zipped.infolist() if one.filename == MEMBER)
    zipped.filelist.remove(member)
    del zipped.NameToInfo[MEMBER]
    zipped.writestr(MEMBER, bytes(160 * MIB))
    zipped.filelist[-1].file_size = 100
    zipped.close()
    refused("prepare", [f"zips/{cityscapes.LABEL_ZIP}: {MEMBER}: "], headroom_bytes=128 * MIB)


def test_a_zip_of_honest_frames_of_one_colour_is_read(city):
    """The most that honest PNGs are packed by: flat ones, all alike."""
    flat = np.full((256, 512), 7, np.uint8)
    for number in range(6):
        split = "val" if number == 0 else "train"
        write_frame(city.path("flat"), split, f"jena_{number:06d}_000019", np.full((256, 512, 3), 9, np.uint8), flat)
    zip_city(city.path("flat"), city.path("zips"))
    city.set_params(data__root="zips")
    done = city.call("prepare")
    assert done.exit_code == 0, done.err


BURSTING = 160 * MIB
PNGS = {
    "a terapixel": (lambda: png_of(zeros_compressed(100), 10**6, 10**6, RGB), "exceeds limit"),
    "as many as can be written": (lambda: png_of(b"", 2**31 - 1, 2**31 - 1, RGB), "exceeds limit"),
    "more than memory is good for": (lambda: png_of(zeros_compressed(100), 12_000, 10_000, RGB), "exceeds limit"),
    "no pixels": (lambda: png_of(zeros_compressed(100), 0, 8, RGB), ""),
    "a text that bursts open": (
        lambda: png_of(zeros_compressed(392), 16, 8, RGB, chunk(b"zTXt", b"note\0\0" + zeros_compressed(BURSTING))),
        "too large",
    ),
    "a colour profile that bursts open": (
        lambda: png_of(zeros_compressed(392), 16, 8, RGB, chunk(b"iCCP", b"name\0\0" + zeros_compressed(BURSTING))),
        "too large",
    ),
}


@pytest.mark.parametrize("name", PNGS)
def test_absurd_pngs_are_refused(city, refused, decoder, name):
    content, cause = PNGS[name]
    city.write(IMAGE, content())
    refused("prepare", [f"{IMAGE}: ", cause], headroom_bytes=128 * MIB)


@pytest.mark.parametrize(("name", "kind"), [(IMAGE, RGB), (LABEL, GREYSCALE)])
def test_pixels_that_burst_open_stay_as_many_as_the_size_says(city, decoder, name, kind):
    city.write(name, png_of(zeros_compressed(BURSTING), 16, 8, kind))
    done = city.call("prepare", headroom_bytes=128 * MIB)
    assert done.exit_code == 0, done.err
    assert np.load(city.path("data/prepared/train/images-00000.npy")).shape[1:] == (8, 16, 3)


NAMES = ["$(touch created)", "`touch created`", "; touch created", "| touch created", "<script>alert(1)", "%s%n"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_would_be_commands_are_refused(city, refused, name):
    write_frame(city.path("raw"), "train", f"{name}_000000_000019", *random_frame(3))
    message = refused("prepare", [f"{name}_000000_000019_leftImg8bit.png", "does not follow <city>_<sequence>_<frame>"])
    assert "image without a label" not in message
    assert not list(city.folder.rglob("created*"))


def test_a_name_cannot_forge_a_message(city, refused):
    forged = city.path("raw/leftImg8bit/train/bochum/x\nerror: all is lost\x1b[2J_leftImg8bit.png")
    forged.touch()
    message = refused("prepare", ["x\\nerror: all is lost\\x1b[2J_leftImg8bit.png"])
    assert "\x1b" not in message
