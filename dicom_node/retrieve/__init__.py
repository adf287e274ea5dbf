"""Retrospective cohorts: studies found at a PACS and retrieved into the spool (query/retrieve SCU, PS3.4 annex C)."""
