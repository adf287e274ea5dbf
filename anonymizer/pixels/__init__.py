"""Text burned into pixels: find it, read it, cover it, leave everything else alone (PS3.15 E.3.1 Clean Pixel Data)."""

from anonymizer.pixels.clean import PixelOutcome, PixelRegion, clean_pixels, needs_look, still_readable

__all__ = ["PixelOutcome", "PixelRegion", "clean_pixels", "needs_look", "still_readable"]
