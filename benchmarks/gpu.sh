#!/usr/bin/env bash
# Everything that needs one GPU, a stage at a time, each within ten minutes; figures go to $OUT as gpu-*.json.
#
#   benchmarks/gpu.sh prepare DIR   here: copy what must travel (assets, tools) from DIR, 45 MB, into build/carry
#   benchmarks/gpu.sh STAGE         there: speed | whole | precision | table1 | paper | ablation
#   TOY=1 benchmarks/gpu.sh STAGE   speed, whole or precision on a CPU, with next to no steps: is the script sound?
#
# "There" needs torch, torchvision and safetensors, no network, and no installation: PYTHONPATH is set to src. What lies in
# $OUT afterwards is copied into benchmarks/results and committed; `--tables` of each script puts it into its page.
set -euo pipefail
cd "$(dirname "$0")/.."

stage=${1:?which stage? see the head of this script}
if [ "$stage" = prepare ]; then
    from=${2:?the folder that holds assets and tools}
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
speed) # passes per second beside the plain twin and the floor, at the paper's batch
    "$python" benchmarks/speed.py "${toy[@]}" --out "$OUT/speed-gpu.json" ;;
whole) # all classes of ResNet-50 at 224 px with quick, VGG-16 and ResNet-50 with the paper's dials: seconds
    "$python" benchmarks/gpu.py whole "${toy[@]}" ;;
precision) # maps in bfloat16 beside those in float32: cosine, and what other networks say of both
    "$python" benchmarks/gpu.py precision "${toy[@]}" ;;
table1) # Table 1 with quick at 224 px, four networks
    "$python" benchmarks/table1.py --bank imagenet --size 224 --seeds 3 ;;
paper) # Table 1 with the paper's own 204,800 passes at 224 px: one source a call, as its maps take a quarter of a minute each
    "$python" benchmarks/table1.py --bank imagenet --size 224 --preset paper --seeds 1 --sources "${2:-resnet50}" ;;
ablation) # the dials on ResNet-50
    "$python" benchmarks/ablation.py resnet50 --only "${2:-dials}" ;;
*)
    echo "no stage $stage: see the head of this script" >&2
    exit 2 ;;
esac
