#!/usr/bin/env bash
# Runs every fuzz target and prints a table: tools/fuzz.sh [SECONDS PER TARGET] [TARGET ...]
#
# Needs cargo-fuzz, and installs nothing. Ends with 1 if something was found; the inputs then
# lie in fuzz/artifacts. docs/fuzzing.md says what to do with them.
set -euo pipefail

cd "$(dirname "$0")/../fuzz"
seconds=${1:-60}
shift || true
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    targets=(config safetensors gguf spiece tokenizer_json masks)
fi

if ! cargo fuzz --version >/dev/null 2>&1; then
    echo "cargo-fuzz is not there; it is installed by: cargo install cargo-fuzz --locked" >&2
    exit 2
fi

# Without a sanitizer the stable toolchain is enough.
cargo fuzz build --sanitizer none
built=$(cargo metadata --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
built+=/$(rustc -vV | sed -n 's/^host: //p')/release
"$built/seeds" >/dev/null
mkdir -p artifacts logs

# A batch or a config says what it has to say in few bytes.
max_len() {
    case $1 in
    masks) echo 512 ;;
    config) echo 4096 ;;
    *) echo 16384 ;;
    esac
}

found=0
table=$(printf '%-15s %12s %8s %9s %9s %8s\n' target executions seconds edges features found)
for target in "${targets[@]}"; do
    options=(
        -max_total_time="$seconds" -max_len="$(max_len "$target")"
        # What is refused here would take memory or time out of proportion to a small file.
        -rss_limit_mb=2048 -malloc_limit_mb=512 -timeout=10
        -artifact_prefix="artifacts/$target-" -print_final_stats=1
    )
    if [ -f "dictionaries/$target.dict" ]; then
        options+=(-dict="dictionaries/$target.dict")
    fi
    log=logs/$target.log
    echo "fuzzing $target for $seconds s (fuzz/$log)"
    start=$SECONDS
    finds=0
    "$built/$target" "corpus/$target" "${options[@]}" >"$log" 2>&1 || finds=1
    found=$((found | finds))
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)
    read -r edges features < <(sed -n 's/.* cov: \([0-9]*\) ft: \([0-9]*\) .*/\1 \2/p' "$log" | tail -n 1) || true
    table+=$'\n'$(printf '%-15s %12s %8s %9s %9s %8s\n' "$target" "${executions:-?}" $((SECONDS - start)) "${edges:-?}" "${features:-?}" "$finds")
done
echo "$table"
if [ "$found" -ne 0 ]; then
    echo "inputs that broke something: fuzz/artifacts" >&2
    exit 1
fi
