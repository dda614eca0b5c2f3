"""A GGUF file at F16 for llama.cpp, from the embedded judge's own Q4_1 file: python gguf_f16.py OUT.gguf [IN.gguf].

Run it with the interpreter that has llama-cpp-python. The weights are the dequantised ones, as in the embedded judge.
"""

from __future__ import annotations

import ctypes
import sys


def main(target: str, source: str) -> None:
    """Requantise to F16 with llama.cpp's own routine."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_F16, True, 1
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp could not convert {source}")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        from latent_rewards.engine.embedded import embedded_source

        sys.argv.append(str(embedded_source()))
    main(*sys.argv[1:3])
