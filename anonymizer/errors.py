"""What can go wrong in the anonymizer, each with the exit code of docs/exit-codes.md.

    AnonymizerError
    ├── ProfileError    3   a profile cannot be read or says something impossible
    ├── KeyFileError    3   the pseudonym key is missing, unreadable or of the wrong length
    ├── OutputError     7   the output folder cannot be written
    └── InputError      4   the input cannot be taken
        ├── NotDicom        not a DICOM Part 10 file or data set
        ├── Malformed       lengths, nesting or encoding that cannot be right
        ├── TooLarge        a bound on size, depth or time would be passed
        └── PixelError      pixels that cannot be cleaned

No message ever quotes a value of the input.
"""

from __future__ import annotations


class AnonymizerError(Exception):
    exit_code = 1


class ProfileError(AnonymizerError):
    exit_code = 3


class KeyFileError(AnonymizerError):
    exit_code = 3


class OutputError(AnonymizerError):
    exit_code = 7


class InputError(AnonymizerError):
    exit_code = 4


class NotDicom(InputError):
    pass


class Malformed(InputError):
    pass


class TooLarge(InputError):
    pass


class PixelError(InputError):
    pass
