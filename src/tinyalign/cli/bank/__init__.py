"""The verbs of `tinyalign bank`."""
