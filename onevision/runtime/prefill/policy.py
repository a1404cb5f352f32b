"""Prefill of a prompt: by llama.cpp, or by the prefill graph, whose keys and values llama.cpp takes over.

In: a prompt as parts of token ids and visual tokens. Out: a backbone that holds its keys and values, with the
logits of the last position. Decoding is llama.cpp's either way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from onevision.bundle import BACKBONE, PREFILL, Bundle
from onevision.errors import GenerationError, UsageError, suggest
from onevision.metrics import cosine
from onevision.native.gguf import GgufFile
from onevision.runtime.backbone import Backbone
from onevision.runtime.options import Prefill
from onevision.runtime.prefill.graph import PrefillGraph
from onevision.runtime.prefill.state import LayoutError, StateLayout

PromptPart = Sequence[int] | npt.NDArray[np.float32]

#: What computes a prefill in the end: the prefill graph in ONNX Runtime, or llama.cpp.
PrefillBackend = Literal["onnx", "llama"]

#: Tokens from which ``auto`` takes the graph: for fewer, loading it is not worth while.
LEAST = 256

EMBEDDING = "token_embd.weight"
# Computed by both backends when the graph is loaded; tokens enough that a row in a wrong place is seen.
_SAMPLE = "The quick brown fox jumps over the lazy dog, 0123456789 times."
#: Least cosine of the next token's centered logits; a toy in q4_0 against fp32 has 0.98.
_LEAST_COSINE = 0.9


def require_graph(bundle: Bundle, choice: Prefill) -> None:
    """Check that a bundle has a prefill graph if it was asked for by name.

    Raises:
        UsageError: ``onnx``, and there is none.
    """
    if choice == "onnx" and PREFILL not in bundle.manifest.files:
        raise UsageError(
            f"the bundle {bundle.folder} has no prefill graph",
            hint="export it with --prefill onnx, or use --prefill llama",
        )


def choose_backend(choice: Prefill, tokens: int, *, has_graph: bool, offloaded: bool) -> PrefillBackend:
    """Backend for a prompt of so many tokens; the last token is never the graph's.

    Args:
        choice: See :data:`~onevision.runtime.options.Prefill`.
        tokens: Length of the prompt.
        has_graph: The bundle has the graph, and it can be used.
        offloaded: The backbone runs on a GPU.
    """
    least = {"auto": inf if offloaded else LEAST, "onnx": 2, "llama": inf}[choice]
    return "onnx" if has_graph and tokens >= least else "llama"


class PrefillRunner:
    """Prefill into a backbone, by the backend that suits a prompt.

    Attributes:
        warnings: Why the graph is not used although it should be.

    Args:
        bundle: Holds the graph.
        backbone: Receives the keys and values.
        choice: See :data:`~onevision.runtime.options.Prefill`.
        threads: CPU threads of the graph; None for all cores.

    Raises:
        UsageError: An unknown choice, or ``onnx`` for a bundle without the graph.
    """

    def __init__(
        self, bundle: Bundle, backbone: Backbone, choice: Prefill, *, threads: int | None = None
    ) -> None:
        if choice not in get_args(Prefill):
            raise UsageError(f"unknown prefill {choice!r}", hint=suggest(choice, get_args(Prefill)))
        require_graph(bundle, choice)
        self.warnings: tuple[str, ...] = ()
        self._bundle, self._backbone, self._threads = bundle, backbone, threads
        self._choice: Prefill = choice
        self._usable = PREFILL in bundle.manifest.files
        self._loaded: tuple[PrefillGraph, GgufFile, StateLayout] | None = None

    def backend(self, tokens: int, choice: Prefill | None = None) -> PrefillBackend:
        """Backend for a prompt of so many tokens, by the choice of the constructor or another."""
        return choose_backend(
            choice or self._choice, tokens, has_graph=self._usable, offloaded=self._backbone.offloaded
        )

    def needs_graph(self, tokens: int, choice: Prefill | None = None) -> bool:
        """Whether a prompt of so many tokens is the first that the graph computes."""
        return self._loaded is None and self.backend(tokens, choice) == "onnx"

    def load(self, tokens: int, choice: Prefill | None = None) -> None:
        """Load and check the graph, if a prompt of so many tokens needs it and it is not loaded yet.

        The backbone's sequence is lost then.

        Args:
            tokens: Length of the prompt.
            choice: For this prompt; None for that of the constructor.

        Raises:
            BundleError: A file of the graph, or the backbone's, is damaged.
            GenerationError: A native library refused the work.
        """
        if not self.needs_graph(tokens, choice):
            return
        from onevision.native.gguf import GgufFile
        from onevision.runtime.prefill.graph import PrefillGraph

        embedding = GgufFile(self._bundle.path(BACKBONE))
        graph = PrefillGraph(self._bundle.path(PREFILL), threads=self._threads)
        try:
            self._loaded = graph, embedding, self._check(graph, embedding)
        except LayoutError as error:
            graph.close()
            if (choice or self._choice) == "onnx":
                raise GenerationError(
                    f"the prefill graph cannot be used: {error}", hint="--prefill auto or llama"
                ) from error
            self._usable = False
            self.warnings = (f"prefill runs in llama.cpp, not in the prefill graph: {error}",)

    def run(
        self,
        parts: Sequence[PromptPart],
        room: int,
        on_progress: Callable[[int], None] = lambda _: None,
        choice: Prefill | None = None,
    ) -> None:
        """Prefill a whole prompt; the logits of its last position are then ready.

        Args:
            parts: Token ids, or visual tokens float32 [n, H], in order.
            room: Tokens to keep room for after it.
            on_progress: Called as it goes on, with the number of tokens done.
            choice: For this prompt; None for that of the constructor.

        Raises:
            PromptError: More than the context.
            GenerationError: A native library refused the work.
        """
        tokens = sum(map(len, parts))
        self.load(tokens, choice)
        backbone = self._backbone
        backbone.start(tokens + room)
        rest = [part for part in parts if len(part)]
        if self._loaded and self.backend(tokens, choice) == "onnx":
            graph, embedding, layout = self._loaded
            rows = [_embedded(part, embedding) for part in rest]
            rows[-1] = rows[-1][:-1]
            keys_values = graph.run(rows, on_progress)
            backbone.restore(layout.pack(keys_values), tokens - 1)
            rest = [rest[-1][-1:]]
        backbone.prefill(rest, lambda _: on_progress(backbone.used))

    def close(self) -> None:
        """Free the graph; calling it again does nothing."""
        if self._loaded:
            self._loaded[0].close()
            self._loaded = None
        self._usable = False

    def _check(self, graph: PrefillGraph, embedding: GgufFile) -> StateLayout:
        """Prefill a few tokens by both backends, and learn the layout of llama.cpp's states.

        Raises:
            LayoutError: The states have an unknown layout, or the logits differ.
        """
        backbone = self._backbone
        ids = backbone.tokenizer.encode(_SAMPLE)
        backbone.start(len(ids))
        backbone.prefill([ids[:-1]])
        layout = StateLayout.learn(
            bytes(backbone.save()), layers=graph.layers, kv_heads=graph.kv_heads, head_dim=graph.head_dim
        )
        backbone.append(ids[-1])
        expected = backbone.logits()
        keys_values = graph.run([embedding.rows(EMBEDDING, ids[:-1])])
        backbone.start(len(ids))
        try:
            backbone.restore(layout.pack(keys_values), len(ids) - 1)
        except GenerationError as error:
            raise LayoutError(error.message) from error
        backbone.append(ids[-1])
        ours = backbone.logits()
        alike = cosine(ours - ours.mean(), expected - expected.mean())
        if not alike >= _LEAST_COSINE:  # nan as well
            raise LayoutError(f"after a few tokens its logits are not llama.cpp's (cosine {alike:.2f})")
        return layout


def _embedded(part: PromptPart, embedding: GgufFile) -> npt.NDArray[np.float32]:
    """Embeddings of a part, float32 [n, H]: of token ids, those that llama.cpp looks up."""
    return part if isinstance(part, np.ndarray) else embedding.rows(EMBEDDING, part)
