#!/usr/bin/env bash
# CIFAR-10, 10,000 labelled images: four members, fused by soup, aligned_soup, kd, weightformer.
# usage: benchmarks/cifar10_small/run.sh CIFAR10 OUT     (about 20 minutes on 2 cores)
# CIFAR10: the data, in any layout that --data takes. OUT: a folder for zoo and runs.
# Expect: soup at chance (the members are independent), kd above every member.
set -euo pipefail
export PATH="$(cd "$(dirname "$0")/../.." && pwd)/.venv/bin:$PATH"
data=(--data "$1" --limit-train 10000)
out=$2
metaensemble teach "${data[@]}" --architecture convnet,width=32 --members 4 \
  --subset 0.5 --epochs 30 --learning-rate 0.1 --out "$out/zoo"
metaensemble fuse "$out/zoo" --method soup "${data[@]}" --out "$out/soup"
metaensemble fuse "$out/zoo" --method aligned_soup "${data[@]}" \
  --out "$out/aligned_soup"
metaensemble fuse "$out/zoo" --method kd "${data[@]}" --unlabelled \
  --epochs 4 --out "$out/kd"
metaensemble fuse "$out/zoo" --method weightformer "${data[@]}" --unlabelled \
  --epochs 2 --tune-epochs 4 --tune-learning-rate 0.05 --out "$out/weightformer"
python "$(dirname "$0")/../collect.py" cifar10_small \
  "$out/soup" "$out/aligned_soup" "$out/kd" "$out/weightformer"
