"""Harmonisation of image intensities over hospitals by landmarks of their histograms."""
