"""Papers for the hospital's data protection officer, filled from what this node is really set to do (`fedpacs audit papers`).

They are drafts: what a program cannot know stands as a blank, marked as one, for a person to fill in.
"""

from __future__ import annotations

from pathlib import Path

from dicom_node.audit_export import write_whole
from dicom_node.config import NodeConfig
from dicom_node.papers.document import Paper
from dicom_node.papers.facts import Facts, gather
from dicom_node.papers.flow import drawing
from dicom_node.papers.gdpr import assessment, record_of_processing
from dicom_node.papers.hipaa import statement

__all__ = ["Facts", "Paper", "gather", "write_papers"]


def write_papers(config: NodeConfig, folder: Path) -> list[Path]:
    """Write every paper as Markdown and HTML, and the drawing as SVG. Raises ProfileError, StorageError."""
    facts = gather(config)
    papers = {
        "article-30-record": record_of_processing(facts),
        "dpia-draft": assessment(facts),
        "hipaa-deidentification": statement(facts),
    }
    written = []
    for name, paper in papers.items():
        for suffix, text in ((".md", paper.markdown()), (".html", paper.html())):
            written.append(folder / f"{name}{suffix}")
            write_whole(written[-1], text.encode())
    written.append(folder / "data-flow.svg")
    write_whole(written[-1], drawing(facts).encode())
    return written
