"""Fuse an ensemble in Python: python examples/python_api.py."""

import tempfile
from pathlib import Path

import metaensemble as me
from metaensemble.cli import main as metaensemble


def main() -> None:
    """Teach four members, distil them, compare, and save the student."""
    with tempfile.TemporaryDirectory() as folder:
        zoo = Path(folder) / "zoo"
        flags = "teach --data digits --limit-train 300 --architecture convnet,width=8"
        metaensemble([*flags.split(), "--epochs", "60", "--out", str(zoo)])

        data = me.load_data("digits", limit_train=300)
        ensemble = me.load_ensemble([zoo], data=data)
        for method in ("best_member", me.methods.KD(epochs=60, temperature=2.0)):
            fused = me.fuse(ensemble, data, method)
            report = fused.report
            print(report.verdict)
            print(
                f"{report.method['name']}: student "
                f"{100 * report.student.test.accuracy:.1f} %, ensemble "
                f"{100 * report.ensemble.test.accuracy:.1f} %"
            )
        member = fused.save(Path(folder) / "student.safetensors")
        print(me.evaluate(member, data.test))


if __name__ == "__main__":
    main()
