#!/usr/bin/env bash
# Prints the commands that test what differs from a base (default: main): affected.sh [BASE] [run]
set -euo pipefail
cd "$(dirname "$0")/.."
base=$(git merge-base "${1:-main}" HEAD 2>/dev/null || echo HEAD)
changed=$( { git diff --name-only "$base"; git ls-files --others --exclude-standard; } | sort -u)

# The longest path of the table that a changed file starts with gives its tests; a file of tests/it its own module.
tests=$(awk '
    FNR == NR { if ($1 != "" && $1 !~ /^#/) { path = $1; $1 = ""; tests[path] = $0 } next }
    /^tests\/it\// && !/^tests\/it\/(common|snapshots)\// {
        split($0, part, "/"); sub(/\.rs$/, "", part[3]); if (part[3] != "main") print part[3] "::"; next
    }
    /^tests\/it\/snapshots\// { print "rewrite::"; next }
    { best = ""; for (path in tests) if (index($0, path) == 1 && length(path) > length(best)) best = path
      gsub(/-p /, "-p_", tests[best]); if (best != "") { n = split(tests[best], word, " "); for (i = 1; i <= n; i++) print word[i] } }
' tests/affected.txt <(echo "$changed") | sort -u)

filters=$(grep -v '^-p_' <<<"$tests" | tr '\n' ' ' || true)
crates=$(sed -n 's/^-p_/-p /p' <<<"$tests" | tr '\n' ' ')
features=
[[ " $filters " != *" tune:: "* ]] || features=" --features train"
commands=()
[ -z "${crates// /}" ] || commands+=("cargo test --release $crates")
[ -z "${filters// /}" ] || commands+=("cargo test --release$features --test it -- layers:: $filters")
[ "${#commands[@]}" -gt 0 ] || commands+=("true   # nothing that differs from $base has tests")
for command in "${commands[@]}"; do
    echo "$command"
    [ "${2:-}" != run ] || eval "$command"
done
