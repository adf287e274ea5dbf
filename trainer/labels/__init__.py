"""Labels where hospitals have them, read onto the images they refer to."""
