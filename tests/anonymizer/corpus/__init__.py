"""A corpus of hard objects with an answer key, and a scorer in the manner of the MIDI-B challenge."""
