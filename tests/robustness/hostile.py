"""Hand-made hostile files: what a reader must refuse, and with which words."""

import os
from pathlib import Path

import hostile_archives
import hostile_checkpoints
import hostile_images
import hostile_texts
from case import Case, entering

CASES: list[Case] = [
    *hostile_checkpoints.CASES,
    *hostile_images.CASES,
    *hostile_archives.CASES,
    *hostile_texts.CASES,
]
case = entering(CASES)


# what is no file
for reader, path in (
    ("member", "a.safetensors"),
    ("pickled state dict", "new.pt"),
    ("report", "report.json"),
):

    def piped(folder: Path, path: str = path) -> None:
        (folder / path).unlink()
        os.mkfifo(folder / path)

    def foldered(folder: Path, path: str = path) -> None:
        (folder / path).unlink()
        (folder / path).mkdir()

    def dangling(folder: Path, path: str = path) -> None:
        (folder / path).unlink()
        (folder / path).symlink_to(folder / "nothing")

    def emptied(folder: Path, path: str = path) -> None:
        (folder / path).write_bytes(b"")

    case(reader, "must be a file, but .* is no regular file", "a pipe")(piped)
    case(reader, "must be a file, but .* is a folder", "a folder")(foldered)
    case(reader, "does not exist", "a link to nothing")(dangling)
    case(reader, "must be", "no bytes")(emptied)
