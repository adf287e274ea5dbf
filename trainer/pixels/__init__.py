"""From a de-identified DICOM instance to a prepared image."""
