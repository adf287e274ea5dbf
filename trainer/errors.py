"""What may go wrong in the trainer, told in one sentence each.

    TrainerError                   exit code 1
    ├── SpecError                  3   a job specification cannot be read or holds a wrong value
    ├── PixelError                 4   an instance's pixel data cannot be decoded or is not an image
    ├── LabelError                 4   a label is unknown, points to images the node lacks, or disagrees with another
    ├── WeightsError               4   a weights file is damaged or does not fit the network
    ├── BundleError                5   a network or bundle is not installed or not allowed here
    ├── CacheError                 7   the tensor cache cannot be written (disk full, folder not writable)
    ├── CohortError                9   fewer labelled studies than the work needs
    ├── DivergedError              9   the loss became NaN or infinite
    └── MemoryLimitError           7   the device's memory is too small for the network

Every message is one sentence that names what is wrong, where, and how to mend it. Instances are named by their
de-identified SOP Instance UID, never by anything of the identified side.
"""

from __future__ import annotations


class TrainerError(Exception):
    """Base of every error a user of the trainer may read."""

    exit_code = 1


class SpecError(TrainerError):
    exit_code = 3


class PixelError(TrainerError):
    exit_code = 4


class LabelError(TrainerError):
    exit_code = 4


class WeightsError(TrainerError):
    exit_code = 4


class BundleError(TrainerError):
    exit_code = 5


class CacheError(TrainerError):
    exit_code = 7


class CohortError(TrainerError):
    exit_code = 9


class DivergedError(TrainerError):
    exit_code = 9


class MemoryLimitError(TrainerError):
    exit_code = 7
