"""The report of a run; begin at `write`: its tables, then `html` (the page) and `plots` (its pictures, also as PNG)."""
