"""Bad data: status 2, one sentence that says what to do, and nothing written."""

from pathlib import Path

import pytest
from PIL import Image

DIGITS = "--data digits --limit-train 60 --quiet"
TEACH = "teach --architecture mlp,width=8 --members 1 --epochs 1 --quiet --out zoo"


def picture(path: Path, colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), colour).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """An image folder of two classes, 20 training and 2 test images each."""
    folder = tmp_path / "pictures"
    for name, colour in (("ant", 10), ("bee", 200)):
        for i in range(20):
            picture(folder / "train" / name / f"{i}.png", colour + i)
        for i in range(2):
            picture(folder / "test" / name / f"{i}.png", colour + i)
    return folder


def test_an_image_folder_is_fine(cli, pictures):
    assert cli(f"{TEACH} --data {pictures}").status == 0


def test_one_class(refused, pictures):
    for split in ("train", "test"):
        for path in (pictures / split / "bee").iterdir():
            path.unlink()
        (pictures / split / "bee").rmdir()
    refused(f"{TEACH} --data {pictures}", "at least 2 classes|two classes|2 classes")


def test_an_unreadable_image(refused, pictures):
    path = pictures / "train" / "bee" / "3.png"
    path.write_bytes(b"no picture")
    refused(f"{TEACH} --data {pictures}", "must be readable, but .*bee/3.png is not")


def test_a_truncated_image(refused, pictures):
    path = pictures / "test" / "ant" / "1.png"
    path.write_bytes(path.read_bytes()[:40])
    refused(f"{TEACH} --data {pictures}", "must be readable, but .*ant/1.png is not")


def test_a_class_missing_in_test(refused, pictures):
    for path in (pictures / "test" / "bee").iterdir():
        path.unlink()
    (pictures / "test" / "bee").rmdir()
    refused(f"{TEACH} --data {pictures}", "'bee' of train is missing in test; ")


def test_data_that_does_not_exist(refused):
    refused(f"{TEACH} --data nowhere", "data must be digits, .* nowhere does not exist")


def test_members_of_other_data(refused, pictures, zoo):
    refused(
        f"fuse {zoo} --data {pictures} --method kd --out run",
        "must have the same classes, but .* has 10 and pictures has 2; choose the data",
    )
