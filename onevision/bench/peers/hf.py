"""HF transformers as its users run it: ``from_pretrained``, its processor, and ``generate``.

The prompt is ours as a text, so that both read the same tokens. Hooks on the model's parts tell the stages.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from onevision.bench.result import Counts
from onevision.bench.subject import Asked, question
from onevision.bundle import NEWLINE
from onevision.errors import CheckpointError, DeviceError, UsageError
from onevision.runtime.images import read_image
from onevision.runtime.prompt import Control, ImagePart, Visual, render
from onevision.runtime.video import read_video

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from onevision.bench.peers import Setup
    from onevision.bench.scenarios import Inputs, Scenario
    from onevision.bundle import Bundle
    from onevision.models.shapes import ModelConfig
    from onevision.runtime.answer import Stage, StageClock
    from onevision.runtime.prompt import Segment, Template

#: Bytes of a weight.
_BYTES = {"bf16": 2, "fp32": 4}
_IMAGE, _VIDEO = "<image>", "<video>"


class TransformersModel:
    """A checkpoint in transformers.

    Args:
        name: ``transformers-`` and the precision.
        bundle: Made of the same checkpoint: says how the prompt is laid out.
        setup: Where the checkpoint is, and what to run it with.

    Raises:
        CheckpointError: It is another one than the bundle's, of a form that transformers does not read, or
            too large for this memory.
        DeviceError: A GPU was asked for that torch cannot use.
    """

    def __init__(self, name: str, bundle: Bundle, setup: Setup) -> None:
        import torch
        import transformers

        from onevision.export.checkpoint import Checkpoint
        from onevision.proof.reference import fits_in_memory

        self.name = name
        self.resident = None
        precision = name.rpartition("-")[2]
        folder = cast("Path", setup.checkpoint)
        library: Any = transformers  # which leaves much untyped
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
        if setup.device == "cuda" and not torch.cuda.is_available():
            raise DeviceError("torch has no CUDA here", hint="install a build of torch with CUDA")
        with Checkpoint.open(folder) as checkpoint:
            config = checkpoint.config
            if config.format != "hf":
                raise CheckpointError(f"transformers does not read the form of {folder}: {config.format}")
            if not fits_in_memory(checkpoint, _BYTES[precision]):
                raise CheckpointError(f"{folder} does not fit in this memory in {precision}")
        torch.set_num_threads(setup.threads)
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._device = "cuda" if setup.device == "cuda" else "cpu"
        model, info = library.LlavaOnevisionForConditionalGeneration.from_pretrained(
            folder, dtype=self._dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        if info["missing_keys"]:
            raise CheckpointError(f"transformers misses {sorted(info['missing_keys'])[0]} in {folder}")
        newline = model.model.image_newline.detach().float().numpy()
        if not np.allclose(newline, np.load(bundle.path(NEWLINE)), rtol=2**-8):
            raise CheckpointError(f"{folder} is not the checkpoint that the bundle was made of")
        # The end of the sequence is a token like any other, so that the answer is as long as ours.
        model.generation_config.eos_token_id = None
        self._model: Any = model.eval().to(self._device)
        self._processor = _processor(folder, config.vision.image_size // config.vision.patch_size, config)
        self._visual_ids = [config.image_token_id, config.video_token_id]
        self._manifest = bundle.manifest

    def ask(self, scenario: Scenario, inputs: Inputs, new_clock: Callable[[], StageClock]) -> Asked:
        """See :class:`~onevision.bench.subject.Subject`."""
        import torch

        if scenario.again:
            raise UsageError("a second question has the answer to the first in it, which is another here")
        text = self._text(inputs)
        clock = new_clock()
        if self._device == "cuda":
            clock.synchronise = torch.cuda.synchronize
        stages = _Stages(clock)
        stages.enter("read")
        media = self._media(scenario, inputs)
        stages.enter("preprocess")
        batch = self._processor(text=text, return_tensors="pt", **media).to(self._device, self._dtype)
        stages.leave()
        streamer = _Tokens(stages)
        with torch.inference_mode(), _watched(self._model.model, stages) as tiles:
            self._model.generate(**batch, max_new_tokens=scenario.answer, do_sample=False, streamer=streamer)
        stages.leave()
        ids = batch["input_ids"][0]
        visual = sum(int((ids == token).sum()) for token in self._visual_ids)
        counts = Counts(len(ids), visual, len(streamer.ids), sum(tiles))
        return Asked(counts, tuple(streamer.ids), clock, streamer.ttft, clock.elapsed())

    def _text(self, inputs: Inputs) -> str:
        """Our prompt, with a placeholder for each picture and video."""
        prompt = self._manifest.prompt
        segments = render(question(inputs), cast("Template", prompt.template), prompt.system)
        return "".join(map(_written, segments))

    def _media(self, scenario: Scenario, inputs: Inputs) -> dict[str, Any]:
        """Pictures and frames as the processor takes them; one nested list is one prompt."""
        if inputs.video is not None:
            frames = scenario.frames or self._manifest.video.frames
            return {"videos": [read_video(inputs.video, frames=frames, prepare=np.asarray).tiles]}
        if not inputs.images:
            return {}
        return {"images": [[read_image(image) for image in inputs.images]]}


def _written(segment: Segment) -> str:
    if isinstance(segment, Control):
        return segment.token
    if isinstance(segment, Visual):
        return _IMAGE if isinstance(segment.part, ImagePart) else _VIDEO
    return segment


class _Stages:
    """Stages that follow each other: entering one leaves the one before."""

    def __init__(self, clock: StageClock) -> None:
        self.clock = clock
        self._open: AbstractContextManager[None] | None = None

    def enter(self, stage: Stage) -> None:
        self.leave()
        self._open = self.clock.stage(stage)
        self._open.__enter__()

    def leave(self) -> None:
        if self._open:
            self._open.__exit__(None, None, None)
            self._open = None


class _Tokens:
    """What ``generate`` tells of its tokens (transformers' ``BaseStreamer``): the prompt, then each one."""

    def __init__(self, stages: _Stages) -> None:
        self.ids: list[int] = []
        self.ttft: float | None = None
        self._stages = stages
        self._prompt_seen = False

    def put(self, value: Any) -> None:  # noqa: ANN401
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.ids += value.tolist()
        if self.ttft is None:
            self._stages.leave()
            self.ttft = self._stages.clock.elapsed()
            self._stages.enter("decode")
        else:
            self._stages.clock.lap()

    def end(self) -> None:
        pass


@contextmanager
def _watched(model: Any, stages: _Stages) -> Iterator[list[int]]:  # noqa: ANN401
    """Enter stages as the model comes to its parts; collects the tiles of each call of the tower."""
    tiles: list[int] = []

    def encoding(_module: object, inputs: tuple[Any, ...]) -> None:
        tiles.append(len(inputs[0]))
        stages.enter("encode")

    def reading(_module: object, _inputs: object) -> None:
        if stages.clock.stages["prefill"] == 0:  # later calls are of single tokens
            stages.enter("prefill")

    def read(_module: object, _inputs: object, _outputs: object) -> None:
        if stages.clock.current == "prefill":
            stages.enter("first_token")

    hooks = [
        model.vision_tower.register_forward_pre_hook(encoding),
        model.multi_modal_projector.register_forward_hook(lambda *_: stages.enter("pack")),
        model.language_model.register_forward_pre_hook(reading),
        model.language_model.register_forward_hook(read),
    ]
    try:
        yield tiles
    finally:
        for hook in hooks:
            hook.remove()


def _processor(folder: Path, side: int, config: ModelConfig) -> Any:  # noqa: ANN401
    """The checkpoint's processor, with Pillow for videos as well: its own part for them needs torchvision."""
    import transformers

    from onevision.proof.reference import squashed

    library: Any = transformers
    pictures = library.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    tokenizer = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)

    class Processor(library.LlavaOnevisionProcessor):  # type: ignore[misc]
        """Only the constructor is another: its base's insists on a part for videos."""

        attributes = ["image_processor", "tokenizer"]  # noqa: RUF012 (as in its base)

        def __init__(self) -> None:
            library.ProcessorMixin.__init__(self, pictures, tokenizer)
            self.num_image_tokens = side**2
            self.vision_feature_select_strategy = "full"
            self.vision_aspect_ratio = config.aspect_ratio
            self.image_token, self.video_token = _IMAGE, _VIDEO
            self.image_token_id = tokenizer.convert_tokens_to_ids(_IMAGE)

        def video_processor(self, videos: list[Any], **_: object) -> dict[str, Any]:
            (video,) = videos
            return {"pixel_values_videos": squashed(video, pictures, config.vision.image_size)[None]}

    return Processor()
