"""A segmentation's volumes as an SR measurement report (TID 1500) that refers to the Segmentation it measures.

PS3.16 TID 1500 with one TID 1411 group a segment, written with highdicom as Comprehensive 3D SR. The SOP Instance UID
follows from the Segmentation's, so that the same result is never stored twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.outputs.segmentation import Algorithm, derived_uid, finding_code


def write_measurements(
    folder: Path, sources: Sequence[Any], segmentation: Any, volumes: Mapping[str, float], algorithm: Algorithm
) -> Path:
    """Write the report beside the Segmentation and return its path.

    sources: the data sets of the source images. segmentation: the pydicom data set of the object measured, its segments
    numbered in the order of `volumes` ({class: millilitres}).
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    device = derived_uid(algorithm.sha256, "device")
    series = hd.sr.SourceSeriesForSegmentation(str(sources[0].SeriesInstanceUID))
    observer = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=device, manufacturer_name="fedpacs", model_name=algorithm.name, serial_number=algorithm.sha256[:16]
        ),
    )
    method = hd.sr.AlgorithmIdentification(
        name=algorithm.name, version=algorithm.version, parameters=[f"weights_sha256={algorithm.sha256}"]
    )
    groups = [
        hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=hd.sr.TrackingIdentifier(
                uid=derived_uid(str(segmentation.SOPInstanceUID), name), identifier=name[:64]
            ),
            referenced_segment=hd.sr.ReferencedSegment(
                sop_class_uid=segmentation.SOPClassUID,
                sop_instance_uid=segmentation.SOPInstanceUID,
                segment_number=segment,
                source_series=series,  # whole, so that an empty segment's 0 ml can be told too
            ),
            finding_type=Code(*finding_code(name)),
            algorithm_id=method,
            measurements=[
                hd.sr.Measurement(
                    name=codes.SCT.Volume, value=value, unit=Code("mL", "UCUM", "milliliter"), algorithm_id=method
                )
            ],
        )
        for segment, (name, value) in enumerate(volumes.items(), 1)
    ]
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=Code("363679005", "SCT", "Imaging"),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    uid = derived_uid(str(segmentation.SOPInstanceUID), "measurements")
    sr = hd.sr.Comprehensive3DSR(
        evidence=[*sources, segmentation],
        content=report,
        series_instance_uid=derived_uid(uid, "series"),
        series_number=910,
        sop_instance_uid=uid,
        instance_number=1,
        manufacturer="fedpacs",
        is_complete=True,
        is_verified=False,
    )
    path = folder / f"{sr.SOPInstanceUID}.dcm"
    sr.save_as(path, enforce_file_format=True)
    return path
