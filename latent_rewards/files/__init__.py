"""Files at the edges: rows in, rows out, and what is kept between runs.

Begin at `sources` (rows of JSONL, Parquet and `datasets`) and `outputs` (scored rows, written whole or not at all);
`cache` keeps what a judge has read, `seal` tells a damaged file; `types` names the shapes of plain data.
"""
