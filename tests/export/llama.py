"""llama.cpp through its C API, as the tests of exported files need it."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager

import llama_cpp
import numpy as np

from onevision.native.llama import silence_llama


@contextmanager
def llama_model(path, *, vocab_only=False):
    silence_llama()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = vocab_only
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert model, f"llama.cpp does not load {path}"
    try:
        yield model
    finally:
        llama_cpp.llama_model_free(model)


def tokenize(model, text):
    """Ids of a user's text: special tokens in it are text."""
    data = text.encode()
    room = (llama_cpp.llama_token * (len(data) + 1))()
    vocab = llama_cpp.llama_model_get_vocab(model)
    count = llama_cpp.llama_tokenize(vocab, data, len(data), room, len(room), False, False)
    assert count >= 0
    return room[:count]


def last_logits(path, ids):
    """Logits float32 [vocab] after the last of ``ids``."""
    with llama_model(path) as model:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = 256
        params.n_threads = params.n_threads_batch = 2
        params.type_k = params.type_v = 0  # f32
        params.flash_attn_type = 0
        context = llama_cpp.llama_init_from_model(model, params)
        try:
            tokens = (llama_cpp.llama_token * len(ids))(*ids)
            assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(ids))) == 0
            size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
            logits = llama_cpp.llama_get_logits_ith(context, -1)
            return np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), (size,)).copy()
        finally:
            llama_cpp.llama_free(context)
