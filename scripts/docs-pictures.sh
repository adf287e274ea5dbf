#!/bin/sh
# Takes the pictures of docs/ anew: the browser tests leave them in .artefacts, and those that the pages show are copied.
# Usage: scripts/docs-pictures.sh   (from the repository's root, after `make test` has installed the test tools)
set -eu
PYTHON="${PYTHON:-.venv/bin/python}"
"$PYTHON" -m pytest tests/interop/test_console_browser.py tests/dicom_node/test_web_pages.py tests/aggregator_client/test_dashboard.py
for picture in docs/console-*.png docs/dashboard-*.png; do
    name=$(basename "$picture")
    if [ ! -f ".artefacts/$name" ]; then
        echo "no test takes $name any more: remove it from docs/" >&2
        exit 1
    fi
    cp ".artefacts/$name" "$picture"
done
