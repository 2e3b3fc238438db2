#!/usr/bin/env bash
# CIFAR-10, 10,000 labelled images: pairs of members of two widths, fused by transport.
# usage: benchmarks/ot/run.sh CIFAR10 OUT     (about 40 minutes of one core)
# CIFAR10: the data, in any layout that --data takes. OUT: a folder for zoo and runs.
# Expect: the fusion a few points below the better member, distilled from it above.
set -euo pipefail
export PATH="$(cd "$(dirname "$0")/../.." && pwd)/.venv/bin:$PATH" OMP_NUM_THREADS=1
data=(--data "$1" --limit-train 10000 --device cpu)
teach=(metaensemble teach "${data[@]}" --subset 0.5 --epochs 30 --learning-rate 0.1 --quiet)
"${teach[@]}" --architecture convnet,width=32 --members 4 --out "$2/width32"
"${teach[@]}" --architecture convnet,width=48 --members 3 --seed 100 --out "$2/width48"
python "$(dirname "$0")/run.py" "$1" "$2"
