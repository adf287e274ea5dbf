"""De-identification workers: complete studies, apply the hospital's policy, cross the wall, land labels, forget in time."""
