"""How a prompt is read: by llama.cpp, or by the prefill graph with its keys and values handed over.

In: a prompt as stretches of token ids and embeddings. Out: a backbone that has read it, with the logits of
the last position. Decoding is llama.cpp's either way.
"""

from __future__ import annotations

import time
from math import inf
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from onevision.bundle import BACKBONE, PREFILL
from onevision.errors import GenerationError, UsageError
from onevision.runtime.options import Prefill
from onevision.runtime.prefill.state import LayoutError, StateLayout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from onevision.bundle import Bundle
    from onevision.native.gguf import GgufFile
    from onevision.runtime.backbone import Backbone
    from onevision.runtime.prefill.graph import PrefillGraph

    Part = Sequence[int] | npt.NDArray[np.float32]

#: What reads a prompt in the end.
Reader = Literal["onnx", "llama"]

#: Tokens from which ``auto`` takes the graph: for less, loading it is not worth while.
LEAST = 256

EMBEDDING = "token_embd.weight"
# Read both ways when the graph is loaded; tokens enough that no wrong place of a row stays unseen.
_SAMPLE = "The quick brown fox jumps over the lazy dog, 0123456789 times."
#: Least cosine of the next token's logits, each less their mean; a toy in q4_0 against fp32 has 0.98.
_ALIKE = 0.9


def reader(choice: Prefill, tokens: int, *, has_graph: bool, offloaded: bool) -> Reader:
    """What reads a prompt of so many tokens; the last one is never the graph's.

    Args:
        choice: See :data:`onevision.runtime.options.Prefill`.
        tokens: Of the prompt.
        has_graph: The bundle has the graph, and it can be used.
        offloaded: The backbone runs on a GPU.
    """
    least = {"auto": inf if offloaded else LEAST, "onnx": 2, "llama": inf}[choice]
    return "onnx" if has_graph and tokens >= least else "llama"


class Prefiller:
    """Reads prompts into a backbone.

    Attributes:
        warnings: Why the graph is not used although it should be.

    Args:
        bundle: Where the graph is.
        backbone: What reads, and what keeps the keys and values.
        choice: See :data:`onevision.runtime.options.Prefill`.
        threads: CPU threads of the graph; None for all cores.

    Raises:
        UsageError: An unknown choice, or ``onnx`` for a bundle without the graph.
    """

    def __init__(
        self, bundle: Bundle, backbone: Backbone, choice: Prefill, *, threads: int | None = None
    ) -> None:
        if choice not in get_args(Prefill):
            raise UsageError(f"unknown prefill {choice!r}", hint=f"one of {', '.join(get_args(Prefill))}")
        has_graph = PREFILL in bundle.manifest.files
        if choice == "onnx" and not has_graph:
            raise UsageError(
                f"the bundle {bundle.folder} has no prefill graph",
                hint="export it with --prefill onnx, or use --prefill llama",
            )
        self.warnings: tuple[str, ...] = ()
        self._bundle, self._backbone, self._threads = bundle, backbone, threads
        self._choice: Prefill = choice
        self._usable = has_graph
        self._ready: tuple[PrefillGraph, GgufFile, StateLayout] | None = None

    def reader(self, tokens: int, choice: Prefill | None = None) -> Reader:
        """What reads a prompt of so many tokens, by the choice of the constructor or another."""
        return reader(
            choice or self._choice, tokens, has_graph=self._usable, offloaded=self._backbone.offloaded
        )

    def load(self, tokens: int, choice: Prefill | None = None) -> float:
        """Load and check the graph, if a prompt of so many tokens is the first that it would read.

        The backbone's sequence is lost.

        Args:
            tokens: Of the prompt.
            choice: For this prompt; None for that of the constructor.

        Returns:
            Milliseconds that it took.

        Raises:
            BundleError: A file of the graph, or the backbone's, is damaged.
            GenerationError: A native library refused the work.
        """
        if self._ready is not None or self.reader(tokens, choice) == "llama":
            return 0.0
        from onevision.native.gguf import GgufFile
        from onevision.runtime.prefill.graph import PrefillGraph

        started = time.perf_counter()
        embedding = GgufFile(self._bundle.path(BACKBONE))
        graph = PrefillGraph(self._bundle.path(PREFILL), threads=self._threads)
        try:
            self._ready = graph, embedding, self._check(graph, embedding)
        except LayoutError as error:
            graph.close()
            self._usable = False
            self.warnings = (f"the prompt is read by llama.cpp, not by the prefill graph: {error}",)
        return (time.perf_counter() - started) * 1e3

    def read(
        self,
        parts: Sequence[Part],
        room: int,
        on_progress: Callable[[int], None],
        choice: Prefill | None = None,
    ) -> None:
        """Read a whole prompt; the logits of its last position are then ready.

        Args:
            parts: Token ids, or embeddings float32 [n, H], in order.
            room: Tokens to keep room for after it.
            on_progress: Called as it goes on, with the tokens that are read.
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
        if self._ready and self.reader(tokens, choice) == "onnx":
            graph, embedding, layout = self._ready
            rows = [_embedded(part, embedding) for part in rest]
            rows[-1] = rows[-1][:-1]
            filled = graph.run(rows, on_progress)
            backbone.restore(layout.pack(filled), tokens - 1)
            rest = [rest[-1][-1:]]
        backbone.prefill(rest, lambda _: on_progress(backbone.used))

    def close(self) -> None:
        """Free the graph; calling it again does nothing."""
        if self._ready:
            self._ready[0].close()
            self._ready = None
        self._usable = False

    def _check(self, graph: PrefillGraph, embedding: GgufFile) -> StateLayout:
        """Read a few tokens both ways.

        Raises:
            LayoutError: The library's states are of an unknown layout, or the logits are not alike.
        """
        backbone = self._backbone
        ids = backbone.vocabulary.encode(_SAMPLE)
        backbone.start(len(ids))
        backbone.prefill([ids[:-1]])
        layout = StateLayout.learn(
            backbone.save(), layers=graph.layers, kv_heads=graph.kv_heads, head_dim=graph.head_dim
        )
        backbone.append(ids[-1])
        expected = backbone.logits()
        filled = graph.run([embedding.rows(EMBEDDING, ids[:-1])])
        backbone.start(len(ids))
        try:
            backbone.restore(layout.pack(filled), len(ids) - 1)
        except GenerationError as error:
            raise LayoutError(error.message) from error
        backbone.append(ids[-1])
        likeness = _cosine(backbone.logits(), expected)
        if not likeness >= _ALIKE:  # nan as well
            raise LayoutError(f"after a few tokens its logits are not llama.cpp's (cosine {likeness:.2f})")
        return layout


def _embedded(part: Part, embedding: GgufFile) -> npt.NDArray[np.float32]:
    """Embeddings of a part, float32 [n, H]: of token ids, those that llama.cpp looks up."""
    return part if isinstance(part, np.ndarray) else embedding.rows(EMBEDDING, part)


def _cosine(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> float:
    a, b = ours - ours.mean(), theirs - theirs.mean()
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))
