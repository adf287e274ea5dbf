"""Samples and look-up tables hold printable bytes by chance: they stay, and written words among them do not."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from anonymizer import Deidentifier, load_profile

KEY = bytes(range(32))
ECG = "1.2.840.10008.5.1.4.1.1.9.1.1"


def waveform(samples: bytes) -> bytes:
    """A 12-lead ECG's file with these samples."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ECG, "1.2.3.4"
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = ECG, "1.2.3.4", "1.2.3", "1.2.3.1"
    ds.Modality, ds.PatientName, ds.PatientID = "ECG", "Quennell^Tabitha", "MRN-7730418"
    group = Dataset()
    group.WaveformOriginality, group.NumberOfWaveformChannels = "ORIGINAL", 1
    group.NumberOfWaveformSamples, group.SamplingFrequency = len(samples) // 2, "500"
    group.WaveformBitsAllocated, group.WaveformSampleInterpretation = 16, "SS"
    group.add_new(0x54001010, "OW", samples)
    ds.WaveformSequence = Sequence([group])
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


def after(data: bytes) -> bytes | None:
    output = Deidentifier(load_profile("federated-default"), KEY).deidentify(data).output
    assert output is not None
    return pydicom.dcmread(io.BytesIO(output)).WaveformSequence[0].get("WaveformData")


@pytest.mark.parametrize("seed", range(12))
def test_samples_of_an_electrocardiogram_stay(seed: int) -> None:
    random = np.random.RandomState(seed)
    times = np.arange(20_000)
    smooth = np.cumsum(random.randn(20_000) * 20) + 8000 * np.sin(times / 90)
    samples = smooth if seed % 2 else random.randint(-30_000, 30_000, 20_000)
    raw = samples.astype("<i2").tobytes()
    assert after(waveform(raw)) == raw


def test_ramps_stay() -> None:
    raw = bytes(range(32, 126)) + np.arange(8000, 30_000, 7).astype("<u2").tobytes()
    assert after(waveform(raw)) == raw


@pytest.mark.parametrize("note", [b"name: Quennell, Tabitha ", b"Dr. Obadiah Featherstone tel 0171 555 0199 "])
def test_words_written_among_samples_do_not(note: bytes) -> None:
    samples = np.random.RandomState(3).randint(-30_000, 30_000, 4000).astype("<i2").tobytes()
    assert after(waveform(samples + note + samples)) is None
