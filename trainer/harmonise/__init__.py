"""What hospitals' images have to be compared by: landmarks of their histograms."""
