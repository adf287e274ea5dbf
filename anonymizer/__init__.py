"""Identified DICOM objects in, de-identified objects and an account of what was done out. Imports no other room."""

from anonymizer.engine import Deidentifier
from anonymizer.model import Action, Outcome
from anonymizer.profile import Profile, load_profile

__all__ = ["Action", "Deidentifier", "Outcome", "Profile", "load_profile"]
