"""Clean Recognizable Visual Features Option (PS3.15 E.3.2): takes the face off head volumes and leaves the brain as it is."""
