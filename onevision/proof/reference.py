"""The reference implementation: transformers' LLaVA-OneVision in fp32, with the Pillow image processor.

In: an open checkpoint. Out: a :class:`~onevision.proof.golden.ReferenceCase` with the output of each stage.
Nothing here comes from the runtime: prompts, tiles, token ids and packing are the reference's own, so
that a mistake cannot hide by being made twice. For videos with newlines or pooling that transformers does not
have, it ends at the image features, and the rest is LLaVA-NeXT's rule. Runs in transformers 4.57 and 5; where
the two differ, a comment says so. Needs the extra ``proof``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import psutil

from onevision.bundle import NewlinePosition, Pooling, pooled_side
from onevision.errors import ExportError
from onevision.models.shapes import ModelConfig, VisionConfig
from onevision.proof.golden import GREEDY_STEPS, KEPT_ROWS, VISUAL_ID, ReferenceCase, Rows

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

#: The training format, reference for `<image>` and for `<video>` alike (LLaVA-NeXT, conv "qwen_1_5").
PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{visuals}{question}<|im_end|>\n<|im_start|>assistant\n"
)

#: Qwen2's chat model ends a turn with the first, its base model a text with the second.
_ENDS = ("<|im_end|>", "<|endoftext|>")

#: Parameters of the language model, and those of the vision tower that no answer depends on.
_BACKBONE = ("model.language_model.", "lm_head.")
_UNUSED = ("model.vision_tower.post_layernorm", "model.vision_tower.head")


class Weights(Protocol):
    """A checkpoint: :class:`onevision.export.checkpoint.Checkpoint` is one."""

    @property
    def folder(self) -> Path:
        """The checkpoint's folder."""

    @property
    def config(self) -> ModelConfig:
        """Its shape."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors as in transformers 4.52 to 4.57."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """A tensor in its stored type."""


class Reference:
    """transformers' model, filled from a checkpoint.

    Args:
        checkpoint: Needed only while this is constructed.
        backbone: Load the language model too; without it cases end at the visual tokens.
        never_sampled: Tokens that are never decoded: rows beyond the tokenizer, placeholders.
    """

    def __init__(
        self, checkpoint: Weights, *, backbone: bool = True, never_sampled: Sequence[int] = ()
    ) -> None:
        self.config = config = checkpoint.config
        self.has_backbone = backbone
        self._never_sampled = list(never_sampled) or None
        self._model = _load(checkpoint, backbone=backbone)
        self._tokenizer = _tokenizer(checkpoint.folder)
        self._ends = sorted({*config.text.eos_ids, *map(self._tokenizer.token_to_id, _ENDS)})
        side = config.vision.image_size
        self._processor = _image_processor()(
            size={"height": side, "width": side},
            image_grid_pinpoints=[list(pair) for pair in config.grid_pinpoints],
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        )

    def case(
        self,
        name: str,
        question: str,
        *,
        images: Sequence[npt.NDArray[np.uint8]] = (),
        video: npt.NDArray[np.uint8] | None = None,
        keep: int | None = None,
    ) -> ReferenceCase:
        """Run one input through all stages.

        Args:
            name: Name of the case.
            question: Text after the images.
            images: uint8 [h, w, 3] each.
            video: Frames uint8 [N, h, w, 3]; all are used.
            keep: Number of rows to keep of features and embeddings; None for all.
        """
        import torch

        with torch.inference_mode():
            ids = self._prompt_ids(question, len(images), has_video=video is not None)
            tiles, features, packed = self._visuals(images, video)
            logits, tokens = (None, None)
            if self.has_backbone:
                logits, tokens = self._decode(ids, packed)
        return ReferenceCase(
            name=name,
            prompt=question,
            images=tuple(images),
            video=video,
            prompt_ids=np.array(ids, dtype=np.int64),
            tiles=None if tiles is None else _levels(tiles),
            features=None if features is None else Rows.of(features.numpy(), keep),
            embeddings=Rows.of(torch.cat(packed).numpy(), keep) if packed else None,
            logits=logits,
            tokens=tokens,
        )

    def answer(
        self,
        question: str,
        *,
        images: Sequence[npt.NDArray[np.uint8]] = (),
        video: npt.NDArray[np.uint8] | None = None,
        max_tokens: int = GREEDY_STEPS,
    ) -> str:
        """The greedy answer; arguments as of :meth:`case`."""
        import torch

        with torch.inference_mode():
            ids = self._prompt_ids(question, len(images), has_video=video is not None)
            _, tokens = self._decode(ids, self._visuals(images, video)[2], max_tokens)
        text: str = self._tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
        return text.strip()

    def _prompt_ids(self, question: str, images: int, *, has_video: bool) -> list[int]:
        """Token ids; text around images is tokenized separately (LLaVA-NeXT's tokenizer_image_token)."""
        visuals = images + has_video
        before, after = PROMPT.split("{visuals}")
        chunks = [before, *[" "] * (visuals - 1), "\n" + after] if visuals else [before + after]
        ids: list[int] = []
        for number, chunk in enumerate(chunks):
            if number:
                ids.append(VISUAL_ID)
            text = chunk.replace("{question}", question)
            ids += self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _visuals(
        self, images: Sequence[npt.NDArray[np.uint8]], video: npt.NDArray[np.uint8] | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, list[torch.Tensor]]:
        """Pixel values [T, 3, S, S], image features [T, P, H], and visual tokens of each input."""
        import torch

        model = self._model.model
        pixels: list[torch.Tensor] = []
        features: list[torch.Tensor] = []
        packed: list[torch.Tensor] = []
        hook = model.multi_modal_projector.register_forward_hook(
            lambda _module, _inputs, output: features.append(output)
        )
        try:
            if images:
                # A nested list is one sample: several images in it are padded, a single one is tiled.
                batch = self._processor([list(images)], return_tensors="pt")
                pixels += batch["pixel_values"]
                found = model.get_image_features(
                    batch["pixel_values"],
                    batch["image_sizes"],
                    vision_aspect_ratio=_bounded(self.config.aspect_ratio),
                    batch_num_images=batch["batch_num_images"],
                )
                packed += getattr(found, "pooler_output", found)  # transformers 5, 4
            if video is not None:
                frames = squashed(video, self._processor, self.config.vision.image_size)
                pixels.append(frames)
                found = model.get_video_features(
                    frames[None], vision_feature_layer=-1, vision_feature_select_strategy="full"
                )
                clip = getattr(found, "pooler_output", found)[0]
                if self.config.pooling != "bilinear":
                    clip = _pooled(features[-1], self.config.pooling).flatten(0, 1)
                frame_tokens = pooled_side(self.config.vision.side, self.config.pooling) ** 2
                # Some releases of transformers 5 have appended the newline already.
                clip = clip[: len(frames) * frame_tokens].reshape(len(frames), frame_tokens, -1)
                packed.append(_with_newlines(clip, model.image_newline, self.config.newline))
        finally:
            hook.remove()
        if not pixels:
            return None, None, []
        return torch.cat(pixels), torch.cat(features), packed

    def _decode(
        self, ids: Sequence[int], packed: Sequence[torch.Tensor], max_tokens: int = GREEDY_STEPS
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Logits of the last prompt position [vocabulary], and the greedy continuation."""
        import torch

        embed = self._model.get_input_embeddings()
        visuals = iter(packed)
        parts = [next(visuals) if token == VISUAL_ID else embed(torch.tensor([token])) for token in ids]
        out = self._model.generate(
            inputs_embeds=torch.cat(parts)[None],
            attention_mask=torch.ones(1, sum(map(len, parts)), dtype=torch.long),
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=self._ends,
            pad_token_id=self._ends[0],
            suppress_tokens=self._never_sampled,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = out.sequences[0].numpy()
        return out.logits[0][0].float().numpy(), tokens[: -1 if tokens[-1] in self._ends else None]


def _pooled(features: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Features [F, P, H] halved as LLaVA-NeXT does where transformers cannot: average or max, [F, p, H]."""
    from torch.nn.functional import avg_pool2d, max_pool2d

    side = isqrt(features.shape[1])
    plane = features.reshape(len(features), side, side, -1).permute(0, 3, 1, 2)
    pool = avg_pool2d if pooling == "average" else max_pool2d
    return pool(plane, 2).flatten(2).transpose(1, 2)


def _with_newlines(frames: torch.Tensor, newline: torch.Tensor, position: NewlinePosition) -> torch.Tensor:
    """Visual tokens [n, H] of pooled frames [F, p, H]. transformers knows ``one_token`` alone."""
    import torch

    count, tokens, _ = frames.shape
    side = isqrt(tokens)
    if position == "grid":
        rows = frames.reshape(count, side, side, -1)
        return torch.cat((rows, newline.expand(count, side, 1, -1)), 2).flatten(0, 2)
    if position == "frame":
        return torch.cat((frames, newline.expand(count, 1, -1)), 1).flatten(0, 1)
    end = newline[None] if position == "one_token" else newline[:0, None].expand(0, len(newline))
    return torch.cat((frames.flatten(0, 1), end))


def squashed(video: npt.NDArray[np.uint8], processor: Any, side: int) -> torch.Tensor:  # noqa: ANN401
    """Resize each frame to the tile, ignoring its aspect ratio: pixel values [N, 3, S, S].

    Args:
        video: uint8 [N, h, w, 3].
        processor: The image processor, for its normalization.
        side: S.
    """
    import torch
    from transformers.image_transforms import normalize, rescale, resize
    from transformers.image_utils import PILImageResampling

    frames = []
    for frame in video:
        tile = resize(frame, size=(side, side), resample=PILImageResampling.BICUBIC)
        scaled = rescale(tile, scale=processor.rescale_factor)
        frames.append(normalize(scaled, mean=processor.image_mean, std=processor.image_std))
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()


def fits_in_memory(checkpoint: Weights, weight: int = 4) -> bool:
    """Whether the checkpoint fits in free memory with a tenth to spare, at ``weight`` bytes per weight."""
    weights = sum(prod(checkpoint.shape(name)) for name in checkpoint.names)
    return weight * weights * 1.1 < psutil.virtual_memory().available


def golden_cases(reference: Reference, on_case: Callable[[str], None] | None = None) -> list[ReferenceCase]:
    """The four cases of a bundle: a tiled image, two images, a video, and text alone.

    The tiled image is 1.5 times as wide as a tile: three tiles, and columns of padding to remove.
    """
    side = reference.config.vision.image_size
    one = [synthetic_image(side * 3 // 2, side, seed=1)]
    two = [synthetic_image(side, side * 2 // 3, seed=2), synthetic_image(side // 2, side * 3 // 4, seed=3)]
    clip = np.stack([synthetic_image(side * 4 // 3, side, seed=seed) for seed in (4, 5)])
    inputs: dict[str, tuple[str, dict[str, Any]]] = {
        "image": ("What is in this picture?", {"images": one}),
        "images": ("What is different between the two pictures?", {"images": two}),
        "video": ("What happens in this video?", {"video": clip}),
        "text": ("Write one sentence about the sea.", {}),
    }
    cases = []
    for name, (question, visuals) in inputs.items():
        if on_case:
            on_case(name)
        cases.append(reference.case(name, question, **visuals, keep=KEPT_ROWS))
    return cases


def synthetic_image(width: int, height: int, *, seed: int) -> npt.NDArray[np.uint8]:
    """A generated image, uint8 [height, width, 3], with smooth areas, edges and grain."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    y, x = y / height, x / width
    waves = random.uniform(1, 9, (3, 2))
    scene = np.stack([np.sin(a * x + b * y + a * b) for a, b in waves], axis=-1) * 70 + 120
    for _ in range(6):
        middle_x, middle_y, radius = (random.uniform(*ends) for ends in ((0.1, 0.9), (0.1, 0.9), (0.05, 0.2)))
        scene[(x - middle_x) ** 2 + (y - middle_y) ** 2 < radius**2] = random.uniform(0, 255, 3)
    return np.clip(scene + random.normal(0, 6, scene.shape), 0, 255).astype(np.uint8)


def _load(checkpoint: Weights, *, backbone: bool) -> Any:  # noqa: ANN401
    """Transformers' model in fp32, each parameter taken from the checkpoint."""
    import torch
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    config_class: Any = LlavaOnevisionConfig
    model_class: Any = LlavaOnevisionForConditionalGeneration
    config = config_class(**_transformers_config(checkpoint.config, backbone=backbone))
    # Uninitialized parameters take no memory until the checkpoint's replace them.
    with _no_init_weights():
        model = model_class(config).eval()
    model.tie_weights()  # before the loop: a tied head is then no parameter of its own
    # transformers 5 has no "vision_model." in the names of the tower's parameters.
    stored = {name.replace(".vision_model.", "."): name for name in checkpoint.names}
    for own_name, parameter in model.named_parameters():
        name = own_name.replace(".vision_model.", ".")
        if not backbone and name.startswith(_BACKBONE):
            continue
        if name in stored:
            parameter.data = torch.from_numpy(checkpoint.tensor(stored[name]).astype(np.float32))
        elif not name.startswith(_UNUSED):
            raise ExportError(f"the reference needs {name}, which the checkpoint does not have")
    return model


def _tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer from ``tokenizer.json`` alone, or else transformers' own from ``vocab.json``.

    Not ``AutoTokenizer``: transformers 4 fails on a ``tokenizer_config.json`` that transformers 5 saved.
    """
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    from transformers import Qwen2TokenizerFast

    tokenizer: Any = Qwen2TokenizerFast.from_pretrained(folder, local_files_only=True)
    return cast("Tokenizer", tokenizer.backend_tokenizer)


def _image_processor() -> Any:  # noqa: ANN401
    """The image processor that uses Pillow; in transformers 5 the plain name is torchvision's."""
    import transformers

    pillow = getattr(transformers, "LlavaOnevisionImageProcessorPil", None)
    return pillow or transformers.LlavaOnevisionImageProcessor


def _no_init_weights() -> Any:  # noqa: ANN401
    """Context in which transformers does not initialize new parameters."""
    from transformers import modeling_utils

    home: Any = getattr(modeling_utils, "init", modeling_utils)  # transformers 5, 4
    return home.no_init_weights()


def siglip_config(vision: VisionConfig) -> dict[str, object]:
    """The tower as transformers' ``SiglipVisionConfig`` describes it."""
    return {
        "model_type": "siglip_vision_model",
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "layer_norm_eps": vision.layer_norm_eps,
        "hidden_act": "gelu_pytorch_tanh",
        "vision_use_head": False,
    }


def _transformers_config(config: ModelConfig, *, backbone: bool) -> dict[str, Any]:
    text = config.text
    return {
        "vision_config": siglip_config(config.vision),
        "text_config": {
            "model_type": "qwen2",
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.layers if backbone else 0,
            "num_attention_heads": text.heads,
            "num_key_value_heads": text.kv_heads,
            "vocab_size": text.vocab_size if backbone else 1,
            "max_position_embeddings": text.context_length,
            "rope_theta": text.rope_theta,
            "rms_norm_eps": text.rms_norm_eps,
            "tie_word_embeddings": text.tied,
        },
        "tie_word_embeddings": text.tied,
        "vision_aspect_ratio": _bounded(config.aspect_ratio),
        "image_grid_pinpoints": [list(pair) for pair in config.grid_pinpoints],
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "projector_hidden_act": "gelu",
    }


def _bounded(aspect_ratio: str) -> str:
    """The aspect ratio with the bound that transformers requires; plain ``anyres`` gets a huge one."""
    return "anyres_max_1000000" if aspect_ratio == "anyres" else aspect_ratio


def _levels(pixels: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Undo the normalization: pixel values [T, 3, S, S] to uint8 [T, S, S, 3]."""
    levels = (pixels * 127.5 + 127.5).round().permute(0, 2, 3, 1)
    return levels.numpy().astype(np.uint8)
