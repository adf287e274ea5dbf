#!/bin/sh
# Installs fedpacs from this bundle without any network: sh install.sh [FOLDER], by default /opt/fedpacs.
set -eu
cd "$(dirname "$0")"
target="${1:-/opt/fedpacs}"
python="${PYTHON:-python3.11}"
sha256sum --quiet --check SHA256SUMS
"$python" -m venv "$target"
"$target/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --find-links wheels -c constraints.txt fedpacs
"$target/bin/fedpacs" --version
echo "Installed in $target. Next: docs/install.md, service files in deploy/systemd."
