"""From messages to an answer. Never imports torch, transformers, onnx or optimum.

The stages, in the order of the data:

* :mod:`~onevision.runtime.messages`: messages of a client, in the forms of OpenAI, Ollama and transformers
* :mod:`~onevision.runtime.pages`, :mod:`~onevision.runtime.images`, :mod:`~onevision.runtime.video`: files to
  upright RGB images and frames
* :mod:`~onevision.runtime.anyres`: an image to tiles uint8 [T, S, S, 3] and pixel values float32 [T, 3, S, S]
* :mod:`~onevision.runtime.prompt`, :mod:`~onevision.runtime.template`: messages to segments
* :mod:`~onevision.runtime.tokenizer`: segments to token ids
* :mod:`~onevision.runtime.prepare`: these joined: a prompt of known length
* :mod:`~onevision.runtime.vision`: pixel values to image features float32 [T, P, H], in ONNX Runtime
* :mod:`~onevision.runtime.pack`: image features to visual tokens float32 [n, H]
* :mod:`~onevision.runtime.prefill`: the prompt to the KV cache, in ONNX Runtime or llama.cpp
* :mod:`~onevision.runtime.backbone`, :mod:`~onevision.runtime.sampler`: the next token, in llama.cpp
* :mod:`~onevision.runtime.schema`, :mod:`~onevision.runtime.grammar`: tokens that keep an answer in its form
* :mod:`~onevision.runtime.choices`, :mod:`~onevision.runtime.logprobs`: probabilities of choices and tokens
* :mod:`~onevision.runtime.text`: bytes of tokens to text

And around them:

* :mod:`~onevision.runtime.pipeline`: a loaded bundle and its stages, timed by :mod:`~onevision.runtime.clock`
* :mod:`~onevision.runtime.generate`: an answer in pieces
* :mod:`~onevision.runtime.engine`: ``OneVision``, the public face
* :mod:`~onevision.runtime.chat`: conversations
* :mod:`~onevision.runtime.options`, :mod:`~onevision.runtime.forms`: what goes in besides
* :mod:`~onevision.runtime.answer`: what comes out
* :mod:`~onevision.runtime.cache`: image features and prompt beginnings, kept
"""
