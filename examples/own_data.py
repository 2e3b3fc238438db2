"""An ensemble and its one network on your own images: python examples/own_data.py.

What is needed of you is a folder: train/CLASS/* and test/CLASS/*, images of any size
and format. Here it is made up: squares, discs and crosses on coloured ground.
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import metaensemble as me
from metaensemble.cli import main as metaensemble


def draw(random: np.random.Generator, shape: str) -> Image.Image:
    """Return an image of one shape, of random size, place and colours."""
    width, height, size = (int(n) for n in random.integers((30, 30, 16), (44, 44, 26)))
    ground, colour = (tuple(map(int, random.integers(0, 256, 3))) for _ in range(2))
    image = Image.new("RGB", (width, height), ground)
    x, y = (int(random.integers(0, side - size)) for side in (width, height))
    box, pen = (x, y, x + size, y + size), ImageDraw.Draw(image)
    if shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "disc":
        pen.ellipse(box, fill=colour)
    else:
        pen.line(box, fill=colour, width=4)
        pen.line((x, y + size, x + size, y), fill=colour, width=4)
    return image


def main() -> None:
    """Write the images, teach three members, and make one network of them."""
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        images, zoo = Path(temporary) / "images", Path(temporary) / "zoo"
        for split, count in (("train", 80), ("test", 60)):
            for shape in ("square", "disc", "cross"):
                folder = images / split / shape
                folder.mkdir(parents=True)
                for number in range(count):
                    draw(random, shape).save(folder / f"{number}.png")
        line = f"teach --data {images} --image-size 24 --out {zoo} --members 3 --quiet"
        flags = "--architecture convnet,width=8 --epochs 40 --batch-size 32"
        if metaensemble([*line.split(), *flags.split(), "--subset", "0.7"]):
            raise SystemExit(2)
        data = me.load_data(images, image_size=24, validation_fraction=0.2)
        kd = me.methods.KD(epochs=40, batch_size=32)
        fused = me.fuse(me.load_ensemble([zoo], data=data), data, kd)
        print(f"{data.classes}, {len(data.train)} images to learn from")
        print(fused.report.verdict)


if __name__ == "__main__":
    main()
