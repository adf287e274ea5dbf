"""Runs this site's own model on reference studies: `python -m aggregator_client.reference_job MODEL STUDIES OUT DEVICE`.

A process of its own, so that its memory is freed; OUT gets fractional DICOM Segmentations, or predictions.jsonl for classes. The
last line on standard output is a JSON object {"outputs", "set_aside"}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dicom_node.supervise import die_with_parent


def main(argv: list[str]) -> int:
    die_with_parent()
    model, studies, out = (Path(part) for part in argv[:3])
    from trainer.errors import TrainerError
    from trainer.job import choose_device
    from trainer.modelcard import load_model
    from trainer.predict import predict

    try:
        done = predict(load_model(model), [studies], out, kind="fractional", device=choose_device(argv[3]))
    except TrainerError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps({"outputs": done.outputs, "set_aside": done.set_aside}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
