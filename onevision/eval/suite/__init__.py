"""The tiny suite: generated images, videos and questions with known answers.

``seed -> scene (pixels, facts, questions) -> sample (one question in one answer form)``. NumPy and Pillow
only. The same seed gives the same samples. The ``test`` split holds combinations that are never in ``train``.
"""

from onevision.eval.suite.sample import Question, Sample, Scene, Split, score
from onevision.eval.suite.stream import FAMILIES, build_scene, iter_samples, iter_scenes

__all__ = [
    "FAMILIES",
    "Question",
    "Sample",
    "Scene",
    "Split",
    "build_scene",
    "iter_samples",
    "iter_scenes",
    "score",
]
