"""The report of a run; begin at `write`: its tables, then `html` (the page), `charts` (its SVG) and `plots` (PNGs)."""
