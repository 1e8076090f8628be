#!/bin/sh
# Rewrites every fixture exactly, and validates it on ONNX Runtime's CPU provider and on its CUDA provider.
#
#     tests/cuda.sh [target/release/gqa2mla [options of the rewrites]]
#
# Needs a CUDA device, onnxruntime-gpu (ORT_DYLIB_PATH, or an active environment) and CUDA's libraries. Prints a line for each
# fixture whose two results differ, with CUDA's message, and at last how many were validated on each. Fails when CUDA validates
# less than the CPU.
program=${1:-target/release/gqa2mla}
[ $# -gt 0 ] && shift
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
one() {
    name=$(basename "$1")
    model=$1
    shift
    for provider in cpu cuda; do
        timeout 300 "$program" rewrite "$model" -o "$out/$name-$provider/model.onnx" --provider "$provider" "$@" \
            >"$out/$name.$provider.log" 2>&1
        echo $? >"$out/$name.$provider.code"
    done
    cpu=$(cat "$out/$name.cpu.code") cuda=$(cat "$out/$name.cuda.code")
    [ "$cpu" = "$cuda" ] || echo "$name: CPU $cpu, CUDA $cuda: $(grep . "$out/$name.cuda.log" | tail -n 1)"
    rm -rf "$out/$name-cpu" "$out/$name-cuda"
}
started=0
for model in fixtures/*/*.onnx; do
    case $model in fixtures/cases/* | fixtures/near_miss/*) continue ;; esac
    one "$(dirname "$model")" "$@" &
    started=$((started + 1))
    [ $((started % 4)) -eq 0 ] && wait
done
wait
count() { cat "$out"/*."$1".code | grep -cx 0; }
echo "validated: $(count cpu) on the CPU, $(count cuda) on CUDA, of $(ls "$out"/*.cuda.code | wc -l)"
[ "$(count cuda)" -ge "$(count cpu)" ]
