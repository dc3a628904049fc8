#!/usr/bin/env bash
# `bazel test` where no registry of Bazel's is reached: stand-ins of a few lines for the rules that
# Bazel would fetch, the packages of .venv, and a Bazel of npm's; BAZEL=... names another.
#
#   tools/bazel_test.sh [options] [targets, or all of them]
set -euo pipefail
cd "$(dirname "$0")/.."
cache=$PWD/.cache/bazel

if [[ ! -x .venv/bin/python3 ]]; then
    echo "$0: no .venv/bin/python3; \`make .venv/installed-dev\` makes it" >&2
    exit 1
fi
# The last that npm has. It knows neither MODULE.bazel nor .bazelversion, and takes BUILD as it is.
BAZEL=${BAZEL:-$(tools/npm_program.sh @bazel/bazel-linux_x64@2.1.0 bazel-2.1.0-linux-x86_64)}

# requirement(...) knows the packages of the lock and no others.
mkdir -p "$cache"
rm -rf "$cache/repositories"
cp -r tools/bazel_offline "$cache/repositories"
sed -En '1i PACKAGES = [
    s/^([a-z0-9-]+)==.*/    "\1",/p
    $a ]' requirements_lock.txt >"$cache/repositories/pypi/packages.bzl"

overrides=()
for repository in "$cache"/repositories/*/; do
    touch "$repository/WORKSPACE"
    overrides+=("--override_repository=$(basename "$repository")=${repository%/}")
done
[[ " $* " == *" //"* ]] || set -- "$@" //...

# Old Bazel runs the first python3 on PATH. No links bazel-*: another version would follow them.
# Its minute for a small test is short where other work shares the cores.
PATH=$PWD/.venv/bin:$PATH exec "$BAZEL" --output_user_root="$cache/output" --max_idle_secs=60 \
    test "${overrides[@]}" --symlink_prefix=/ --test_output=errors \
    --test_timeout=300,900,1800,3600 "$@"
