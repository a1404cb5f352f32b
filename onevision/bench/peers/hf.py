"""HF transformers as its users run it: ``from_pretrained``, its processor, and ``generate``.

The prompt is ours as text, so that both read the same tokens. Hooks on the model's parts mark the stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from onevision.bench.peers import TargetSetup
from onevision.bench.result import Counts
from onevision.bench.scenarios import Scenario
from onevision.bench.target import NewClock, Target, TimedAnswer
from onevision.bundle import NEWLINE, Bundle
from onevision.errors import CheckpointError, DeviceError, UsageError
from onevision.models.shapes import ModelConfig
from onevision.runtime.clock import Stage, StageClock
from onevision.runtime.images import read_image
from onevision.runtime.messages import ImagePart, Message, VideoPart
from onevision.runtime.prompt import Control, Segment, Visual
from onevision.runtime.template import lay_out
from onevision.runtime.video import read_video

_BYTES = {"bf16": 2, "fp32": 4}  # per weight
_IMAGE, _VIDEO = "<image>", "<video>"


class TransformersTarget(Target):
    """A checkpoint in transformers.

    Args:
        name: ``transformers-`` and the precision.
        bundle: Made from the same checkpoint; lays out the prompt.
        setup: The checkpoint, device and threads.

    Raises:
        CheckpointError: It is not the bundle's, transformers cannot read it, or it does not fit in memory.
        DeviceError: torch cannot use the GPU.
    """

    def __init__(self, name: str, bundle: Bundle, setup: TargetSetup) -> None:
        import torch
        import transformers

        from onevision.export.checkpoint import Checkpoint
        from onevision.proof.reference import fits_in_memory

        self.name, self._manifest, self._options = name, bundle.manifest, setup.options
        precision, folder = name.rpartition("-")[2], cast("Path", setup.checkpoint)
        library: Any = transformers  # much of it is untyped
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
        if setup.device == "cuda" and not torch.cuda.is_available():
            raise DeviceError("torch has no CUDA here", hint="install a build of torch with CUDA")
        with Checkpoint.open(folder) as checkpoint:
            config = checkpoint.config
            if config.format != "hf":
                raise CheckpointError(f"transformers does not read the format of {folder}: {config.format}")
            if not fits_in_memory(checkpoint, _BYTES[precision]):
                raise CheckpointError(f"{folder} does not fit in this memory in {precision}")
        torch.set_num_threads(setup.threads)
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._device = "cuda" if setup.device == "cuda" else "cpu"
        options = {"dtype": self._dtype, "local_files_only": True, "use_safetensors": True}
        try:
            model, info = library.LlavaOnevisionForConditionalGeneration.from_pretrained(
                folder, **options, output_loading_info=True
            )
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            raise CheckpointError(f"transformers cannot load {folder}: {reason}") from error
        if info["missing_keys"]:
            raise CheckpointError(f"transformers misses {min(info['missing_keys'])} in {folder}")
        newline = model.model.image_newline.detach().float().numpy()
        if not np.allclose(newline, np.load(bundle.path(NEWLINE)), rtol=2**-8):
            raise CheckpointError(f"{folder} is not the checkpoint that the bundle was made from")
        # The end of the sequence is a token like any other, so that the answer is as long as ours.
        model.generation_config.eos_token_id = None
        self._visual_ids = [config.image_token_id, config.video_token_id]
        model.generation_config.suppress_tokens = self._visual_ids  # the runtime never samples them either
        self._model: Any = model.eval().to(self._device)
        self._processor = _processor(folder, config)

    def ask(
        self, scenario: Scenario, messages: Sequence[Message], new_clock: NewClock = StageClock
    ) -> TimedAnswer:
        """See :meth:`Target.ask`."""
        import torch

        if scenario.again:
            raise UsageError("a second question contains the first answer, which differs between engines")
        segments = lay_out(messages, self._manifest.prompt, self._options.template, self._options.system)
        text, clock = "".join(map(_as_text, segments)), new_clock()
        if self._device == "cuda":
            clock.synchronize = torch.cuda.synchronize
        with closing(_Stages(clock)) as stages:
            stages.enter("read")
            media = self._media(scenario, messages)
            stages.enter("preprocess")
            batch = self._processor(text=text, return_tensors="pt", **media).to(self._device, self._dtype)
            stages.close()
            with torch.inference_mode(), _hooks(self._model.model, stages) as tiles:
                options = {"max_new_tokens": scenario.answer, "do_sample": False, "streamer": stages}
                self._model.generate(**batch, **options)
        ids = batch["input_ids"][0]
        visual = sum(int((ids == token).sum()) for token in self._visual_ids)
        counts = Counts(len(ids), visual, len(stages.ids), sum(tiles))
        return TimedAnswer(counts, tuple(stages.ids), tuple(clock.laps), stages.ttft, clock.elapsed())

    def _media(self, scenario: Scenario, messages: Sequence[Message]) -> dict[str, Any]:
        """Images and frames as the processor takes them; one nested list is one prompt."""
        parts, frames = messages[0].content, scenario.frames or self._manifest.video.frames
        images = [read_image(part.source) for part in parts if isinstance(part, ImagePart)]
        videos = [part.source for part in parts if isinstance(part, VideoPart)]
        clips = [read_video(video, frames=frames, prepare=np.asarray).tiles for video in videos]
        return {"videos": clips} if clips else {"images": [images]} if images else {}


def _as_text(segment: Segment) -> str:
    """A part of our prompt, with a placeholder for an image or video."""
    if isinstance(segment, Control):
        return segment.token
    if isinstance(segment, Visual):
        return _IMAGE if isinstance(segment.part, ImagePart) else _VIDEO
    return segment


class _Stages:
    """Stages in a row, entering one leaves the one before; and ``generate``'s streamer of tokens."""

    def __init__(self, clock: StageClock) -> None:
        self.clock, self.ids = clock, list[int]()
        self.ttft: float | None = None
        self._open, self._prompt_seen = ExitStack(), False

    def enter(self, stage: Stage) -> None:
        self.close()
        self._open.enter_context(self.clock.stage(stage))

    def close(self) -> None:
        self._open.close()

    def put(self, value: Any) -> None:  # noqa: ANN401
        """Receive the prompt, then each token."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self.ids += value.tolist()
        if self.ttft is None:
            self.close()
            self.ttft = self.clock.elapsed()
            self.enter("decode")
        else:
            self.clock.lap()

    def end(self) -> None:
        """Nothing: the stage ends with :meth:`close`."""


@contextmanager
def _hooks(model: Any, stages: _Stages) -> Iterator[list[int]]:  # noqa: ANN401
    """Enter stages as the model comes to its parts; collects the tiles of each call of the tower."""
    tiles: list[int] = []

    def encode(_module: object, inputs: tuple[Any, ...]) -> None:
        tiles.append(len(inputs[0]))
        stages.enter("encode")

    def prefill(_module: object, _inputs: object) -> None:
        if not any(lap.stage == "prefill" for lap in stages.clock.laps):  # later calls decode
            stages.enter("prefill")

    def first_token(_module: object, _inputs: object, _outputs: object) -> None:
        if stages.clock.current == "prefill":
            stages.enter("first_token")

    hooks = [
        model.vision_tower.register_forward_pre_hook(encode),
        model.multi_modal_projector.register_forward_hook(lambda *_: stages.enter("pack")),
        model.language_model.register_forward_pre_hook(prefill),
        model.language_model.register_forward_hook(first_token),
    ]
    try:
        yield tiles
    finally:
        for hook in hooks:
            hook.remove()


def _processor(folder: Path, config: ModelConfig) -> Any:  # noqa: ANN401
    """The checkpoint's processor, with Pillow for videos too: its own video part needs torchvision."""
    import transformers

    from onevision.proof.reference import squashed

    library: Any = transformers
    images = library.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    tokenizer = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)

    class Processor(library.LlavaOnevisionProcessor):  # type: ignore[misc]
        """Another constructor: the base's insists on a video part."""

        attributes = ["image_processor", "tokenizer"]  # noqa: RUF012 (as in its base)

        def __init__(self) -> None:
            library.ProcessorMixin.__init__(self, images, tokenizer)
            self.num_image_tokens = (config.vision.image_size // config.vision.patch_size) ** 2
            self.vision_feature_select_strategy = "full"
            self.vision_aspect_ratio = config.aspect_ratio
            self.image_token, self.video_token = _IMAGE, _VIDEO
            self.image_token_id = tokenizer.convert_tokens_to_ids(_IMAGE)

        def video_processor(self, videos: list[Any], **_: object) -> dict[str, Any]:
            (video,) = videos
            return {"pixel_values_videos": squashed(video, images, config.vision.image_size)[None]}

    return Processor()
