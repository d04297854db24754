#!/usr/bin/env bash
# Everything that needs one GPU, in stages of at most ten minutes; results go to $OUT as gpu-*.json.
#
#   benchmarks/gpu.sh prepare DIR   on this machine: copy the assets and tools, 45 MB, from DIR into build/carry
#   benchmarks/gpu.sh STAGE         on the GPU machine: speed | whole | precision | table1 | paper | ablation
#   TOY=1 benchmarks/gpu.sh STAGE   speed, whole or precision on a CPU, with very few steps, to try the script
#
# The GPU machine needs torch, torchvision and safetensors, but no internet and no installation: PYTHONPATH is set to src.
# Copy the files in $OUT into benchmarks/results and commit them; then run the scripts with `--tables`.
set -euo pipefail
cd "$(dirname "$0")/.."

stage=${1:?name a stage: see the top of this script}
if [ "$stage" = prepare ]; then
    from=${2:?name the folder of the assets and tools}
    mkdir -p build/carry
    cp -r "$from/assets" "$from/tools" build/carry/
    exit
fi

export PYTHONPATH=src OUT=${OUT:-build/gpu} AGNOSCO_RESULTS=${OUT:-build/gpu}
export AGNOSCO_ASSETS=${AGNOSCO_ASSETS:-build/assets} AGNOSCO_ARCHITECTURES=${AGNOSCO_ARCHITECTURES:-build/carry/tools/cifar_archs.py}
python=${PYTHON:-python3}
export AGNOSCO_DEVICE=cuda
toy=()
if [ -n "${TOY:-}" ]; then
    AGNOSCO_DEVICE=cpu
    toy=(--toy)
fi
mkdir -p "$OUT"
[ -d "$AGNOSCO_ASSETS" ] || "$python" build/carry/tools/expand_assets.py "$AGNOSCO_ASSETS"

case $stage in
speed) # passes per second beside the reference loop and the bound, at the paper's batch
    "$python" benchmarks/speed.py "${toy[@]}" --out "$OUT/speed-gpu.json" ;;
whole) # all classes of ResNet-50 at 224 px with quick, VGG-16 and ResNet-50 with the paper's dials: seconds
    "$python" benchmarks/gpu.py whole "${toy[@]}" ;;
precision) # maps in bfloat16 beside those in float32: cosine, and scores by other networks
    "$python" benchmarks/gpu.py precision "${toy[@]}" ;;
table1) # Table 1 with quick at 224 px, four networks
    "$python" benchmarks/table1.py --family imagenet --size 224 --seeds 3 ;;
paper) # Table 1 with the paper's own 204,800 passes at 224 px: one source per call, as a map takes a quarter of a minute
    "$python" benchmarks/table1.py --family imagenet --size 224 --preset paper --seeds 1 --sources "${2:-resnet50}" ;;
ablation) # the settings on ResNet-50
    "$python" benchmarks/ablation.py resnet50 --only "${2:-dials}" ;;
*)
    echo "there is no stage $stage: see the top of this script" >&2
    exit 2 ;;
esac
