"""The package's version, where every module may read it; `pyproject.toml` states the same."""

__version__ = "0.1.0"
