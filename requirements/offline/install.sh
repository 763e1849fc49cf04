#!/bin/sh
# Installs slidemil from this folder alone: no network is asked.    ./install.sh [FOLDER]
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
target=${1:-slidemil-env}
python=${PYTHON:-python3}
wanted=$(cat "$here/python.txt")
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ "$found" != "$wanted" ]; then
    echo "$python is Python $found; these wheels are for $wanted. Name another: PYTHON=python$wanted ./install.sh" >&2
    exit 5
fi
"$python" -m venv "$target"
"$target/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-cache-dir \
    --find-links "$here/wheels" --require-hashes --requirement "$here/requirements.txt"
"$target/bin/python" -m pip check --disable-pip-version-check
echo "installed. Try: $target/bin/slidemil doctor; $target/bin/slidemil demo"
