"""Questions of a suite as prompts of a loaded bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onevision.runtime.answer import StageClock
from onevision.runtime.options import Options
from onevision.runtime.prompt import conversation_of

if TYPE_CHECKING:
    from onevision.eval.suite import Sample
    from onevision.runtime.engine import OneVision
    from onevision.runtime.prepare import PreparedPrompt


def prepare(model: OneVision, sample: Sample) -> PreparedPrompt:
    """A question as the model gets it; every frame of a video that is given as an array.

    Raises:
        InputError: A picture, video or text that cannot be used.
    """
    frames = len(sample.video) if isinstance(sample.video, np.ndarray) else None
    messages = conversation_of(sample.prompt, sample.images, sample.video, None)
    return model.preparer.prepare(messages, Options(frames=frames), StageClock())
