#!/bin/sh
# Makes build/fedpacs-bundle.tar: fedpacs, every Python package it needs at the tested version, service files, documentation.
# Run it on a machine with network, same Debian release and processor as the target: `make bundle`. docs/install.md says how to use it.
set -eu
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
bundle="build/fedpacs-bundle"
rm -rf "$bundle" build/lib build/bdist.*
mkdir -p "$bundle/wheels"
"$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$bundle/wheels" .
if [ "${FEDPACS_BUNDLE:-whole}" = own ]; then
    echo "fedpacs alone: FEDPACS_BUNDLE=own leaves the packages it needs out" >&2
else
    "$python" -m pip wheel --quiet --disable-pip-version-check --wheel-dir "$bundle/wheels" -c constraints.txt "$bundle"/wheels/fedpacs-*.whl
fi
cp -R constraints.txt LICENSE README.md CHANGELOG.md deploy docs "$bundle/"
cp scripts/install-bundle.sh "$bundle/install.sh"
(cd "$bundle" && find . -type f ! -name SHA256SUMS -exec sha256sum {} + | LC_ALL=C sort -k 2 > SHA256SUMS)
tar -C build --owner=0 --group=0 --numeric-owner -cf build/fedpacs-bundle.tar fedpacs-bundle
echo "Wrote build/fedpacs-bundle.tar ($(du -m build/fedpacs-bundle.tar | cut -f 1) MB, $(find "$bundle/wheels" -name '*.whl' | wc -l) wheels)."
echo "SHA-256 $(sha256sum build/fedpacs-bundle.tar | cut -d ' ' -f 1)  (carry it by another way than the file)"
