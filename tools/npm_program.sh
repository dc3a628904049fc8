#!/usr/bin/env bash
# Prints the path of a program that an npm package brings, and installs it below .cache first.
#
#   tools/npm_program.sh @bazel/buildifier@8.2.1 buildifier-linux_amd64
set -euo pipefail
package=$1
folder=$(cd "$(dirname "$0")/.." && pwd)/.cache/npm/$package
program=$folder/node_modules/${package%@*}/$2

if [[ $(uname -sm) != "Linux x86_64" ]]; then
    echo "$0: $package holds programs of Linux on x86_64; this is $(uname -sm)" >&2
    exit 1
fi
if [[ ! -x $program ]]; then
    if ! command -v npm >/dev/null; then
        echo "$0: no npm to install $package with; install Node.js, or set BAZEL for Bazel" >&2
        exit 1
    fi
    npm install --silent --no-save --prefix "$folder" "$package" >&2
fi
echo "$program"
