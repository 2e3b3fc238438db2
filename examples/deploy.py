"""Export a student and serve it without PyTorch: python examples/deploy.py."""

import json
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import metaensemble as me
from metaensemble.cli import main as metaensemble


def export(folder: Path) -> Path:
    """Teach four members, fuse them, and export the student to ONNX."""
    zoo, run, out = folder / "zoo", folder / "run", folder / "student.onnx"
    data = "--data digits --limit-train 300 --quiet"
    teach = f"teach {data} --architecture convnet,width=8 --epochs 60 --out {zoo}"
    fuse = f"fuse {zoo} {data} --method kd --epochs 60 --calibrate --out {run}"
    for line in (teach, fuse, f"export {run} --format onnx --out {out}"):
        if metaensemble(line.split()):
            raise SystemExit(2)
    return out


def serve(model: Path, images: np.ndarray) -> list[str]:
    """Return the class names of byte images (count, channels, height, width).

    This is all that a server needs: numpy and onnxruntime. What was done to pixels in
    training (normalisation) and after it (calibration) is inside the file.
    """
    session = onnxruntime.InferenceSession(model)
    classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    pixels = images.astype(np.float32) / 255
    (probabilities,) = session.run(["probabilities"], {"pixels": pixels})
    return [classes[i] for i in np.asarray(probabilities).argmax(1)]


def main() -> None:
    """Export, serve every test image, and count what is right."""
    with tempfile.TemporaryDirectory() as folder:
        model = export(Path(folder))
        test = me.load_data("digits").test
        names = serve(model, test.batch(torch.arange(len(test))).numpy())
        right = [
            name == str(int(y)) for name, y in zip(names, test.labels, strict=True)
        ]
        print(f"served {len(names)} images, {100 * np.mean(right):.1f} % right")


if __name__ == "__main__":
    main()
