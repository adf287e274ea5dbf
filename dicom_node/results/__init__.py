"""Results on their way back: made right of the wall, given their original identity here, stored in the PACS once."""

from dicom_node.results.reidentify import Known, reidentify
from dicom_node.results.store import Results, Returned

__all__ = ["Known", "Results", "Returned", "reidentify"]
