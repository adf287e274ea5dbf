"""Measurements against peers, one file a figure. A package, since Opacus installs a top-level package of that name too."""
