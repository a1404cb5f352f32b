"""Shape of a checkpoint, read from its config in either format.

In: ``config.json`` of a ``llava-hf/…-hf`` (``model_type: llava_onevision``) or an ``lmms-lab/…`` checkpoint
(``model_type: llava``). Out: a :class:`~onevision.models.shapes.ModelConfig`.

transformers 4 and 5 save other keys: ``torch_dtype`` and ``dtype``, ``rope_theta`` and ``rope_parameters``,
``preprocessor_config.json`` with ``video_preprocessor_config.json`` and one ``processor_config.json``.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from onevision.bundle import NewlinePosition, Pooling
from onevision.errors import CheckpointError, UnsupportedCheckpointError, UsageError
from onevision.export.section import DAMAGED_HINT, SCOPE_HINT, Section, read_json, show
from onevision.models.shapes import (
    DEFAULT_FRAMES,
    LLAVA_VIDEO_FRAMES,
    MEAN,
    SO400M,
    STD,
    ModelConfig,
    TextConfig,
    VisionConfig,
    published_config,
    siglip_tower,
)
from onevision.typed import parse_json

IMAGE_TOKEN = "<image>"  # noqa: S105
VIDEO_TOKEN = "<video>"  # noqa: S105

# <|im_end|> of every Qwen2 tokenizer: the training format closes each turn with it.
IM_END_ID = 151645

#: AnyRes modes that can be exported.
ASPECT_RATIO = re.compile(r"anyres(_max_[1-9]\d{0,3})?")

_MAX_LAYERS = 1000
_MAX_PINPOINTS = 4096


def read_config(folder: Path, vision_tower: str | None = None) -> ModelConfig:
    """Read the shape of a checkpoint from ``config.json`` and, if present, ``generation_config.json``.

    The processor's files give the default number of video frames; their normalization has to be SigLIP's.
    A missing key has the default of the reference implementation (transformers for ``llava_onevision``,
    LLaVA-NeXT for ``llava``).

    Args:
        folder: The checkpoint's folder.
        vision_tower: Name or folder of the tower, instead of ``mm_vision_tower`` in an lmms-lab config.

    Raises:
        UsageError: A ``vision_tower`` for a config that describes its own.
        UnsupportedCheckpointError: Another architecture, or a variant that cannot be exported.
        CheckpointError: A file is missing or not JSON, a key is missing, or a value makes no sense.
    """
    root = Section(read_json(folder / "config.json"), "config.json: ")
    if root.get("quantization_config") is not None:
        raise UnsupportedCheckpointError(
            "config.json: quantization_config is set, and a quantized checkpoint cannot be exported",
            hint="export the original checkpoint and choose the precision of the bundle",
        )
    generation = folder / "generation_config.json"
    stops = [Section(read_json(generation), f"{generation.name}: ")] if generation.is_file() else []
    model_type = root.get("model_type")
    if model_type == "llava_onevision":
        if vision_tower is not None:
            raise UsageError("--vision-tower is for lmms-lab's configs: this one describes its tower")
        return replace(_read_hf(root, stops), frames=_read_processors(folder))
    if model_type in ("llava", "llava_qwen"):
        return _read_lmms_lab(root, stops, folder, vision_tower)
    raise UnsupportedCheckpointError(f"config.json: model_type is {show(model_type)}", hint=SCOPE_HINT)


def _read_processors(folder: Path) -> int:
    """Default number of video frames; refuses image processors that make other pixels than the published."""
    files = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
    image, video, both = (
        Section(read_json(folder / name) if (folder / name).is_file() else {}, f"{name}: ") for name in files
    )
    for processor in (image, both.section("image_processor")):
        processor.expect("image_mean", list(MEAN))
        processor.expect("image_std", list(STD))
        processor.expect("resample", 3)  # PIL's bicubic
    frames = video.integer("num_frames", DEFAULT_FRAMES)
    return both.section("video_processor").integer("num_frames", frames)


def _read_hf(root: Section, stops: list[Section]) -> ModelConfig:
    """Read a ``LlavaOnevisionConfig``."""
    root.expect("architectures", ["LlavaOnevisionForConditionalGeneration"])
    root.expect("projector_hidden_act", "gelu")
    root.expect("multimodal_projector_bias", True)
    root.expect("vision_feature_layer", -1)
    root.expect("vision_feature_select_strategy", "full")
    root.expect("use_image_newline_parameter", True)
    default = published_config("7b")
    no_tower = root.get("vision_config") is None
    vision = default.vision if no_tower else _read_vision(root.section("vision_config"))
    text_section = root.section("text_config")
    text_section.expect("model_type", "qwen2")
    # transformers 4 obeys the flag of the text section, 5 either of the two. If a checkpoint has a separate
    # head in spite of the flag, the check of the tensors reports it.
    flags = [section.flag("tie_word_embeddings") for section in (text_section, root)]
    text = _read_text(text_section, [*stops, text_section, root], tied=any(flags))
    pinpoints = root.get("image_grid_pinpoints", [list(pair) for pair in default.grid_pinpoints])
    return ModelConfig(
        format="hf",
        vision=vision,
        text=text,
        aspect_ratio=_aspect_ratio(root, "vision_aspect_ratio", absent="anyres_max_9"),
        grid_pinpoints=_pinpoints(pinpoints, vision.image_size),
        image_token_id=_token_id(root, "image_token", 151646, text.vocab_size),
        video_token_id=_token_id(root, "video_token", 151647, text.vocab_size),
        dtype=_dtype(root),
    )


def _read_lmms_lab(
    root: Section, stops: list[Section], folder: Path, vision_tower: str | None
) -> ModelConfig:
    """Read a ``LlavaQwenConfig`` of LLaVA-NeXT; defaults are those of the ``getattr`` calls there.

    ``mm_vision_select_layer`` is ignored, as it is there: the original's SigLIP class always drops the
    tower's last layer and takes the output of the one before.
    """
    root.expect("architectures", ["LlavaQwenForCausalLM"])
    root.expect("mm_projector_type", "mlp2x_gelu", absent="linear")
    root.expect("mm_patch_merge_type", "spatial_unpad", absent="flat")
    root.expect("mm_spatial_pool_stride", 2)
    root.expect("add_faster_video", False)
    root.expect("mm_resampler_type", None)
    root.expect("mm_use_im_start_end", False)
    tower = _read_tower(root, folder, vision_tower)
    root.expect("mm_hidden_size", tower.hidden_size)
    if tower.layers < 2:
        raise CheckpointError(
            "the vision tower has one layer, and lmms-lab checkpoints run all but the last", hint=DAMAGED_HINT
        )
    pinpoints = _pinpoints(_listed(root.get("image_grid_pinpoints"), tower.image_size), tower.image_size)
    is_llava_video = root.flag("add_time_instruction")
    return ModelConfig(
        format="lmms-lab",
        vision=replace(tower, layers=tower.layers - 1),
        text=_read_text(root, [*stops, root], tied=root.flag("tie_word_embeddings")),
        aspect_ratio=_aspect_ratio(root, "image_aspect_ratio", absent="square"),
        grid_pinpoints=tuple((height, width) for width, height in pinpoints),
        image_token_id=None,
        video_token_id=None,
        dtype=_dtype(root),
        frames=LLAVA_VIDEO_FRAMES if is_llava_video else DEFAULT_FRAMES,
        newline=root.choice("mm_newline_position", NewlinePosition, "one_token"),
        pooling=root.choice("mm_spatial_pool_mode", Pooling, "bilinear"),
        time_instruction=is_llava_video,
    )


def _read_tower(root: Section, folder: Path, chosen: str | None) -> VisionConfig:
    """Find the tower in a folder with its ``config.json``, or by its name; the tensors are checked later.

    The folder may be the checkpoint's or any on this machine: a trainer writes the path that it loaded.
    """
    name = root.get("mm_vision_tower") if chosen is None else chosen
    if not isinstance(name, str) or not name:
        raise root.bad("mm_vision_tower", "the name of a SigLIP tower")
    for place in (Path(name), folder / name) if chosen else (folder / name,):
        path = place / "config.json"
        if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises where a name is too long)
            section = Section(read_json(path), f"{name}/config.json: ")
            is_whole = section.get("model_type") == "siglip"
            return _read_vision(section.section("vision_config") if is_whole else section)
    if found := siglip_tower(name):
        return found
    raise UnsupportedCheckpointError(
        f"{'--vision-tower' if chosen else 'config.json: mm_vision_tower'} is {show(name)}, "
        "which is no published SigLIP tower and no folder with a config.json",
        hint=f"name the tower that it was trained with: onevision export --vision-tower {SO400M}, or set "
        "mm_vision_tower in config.json",
    )


def _read_vision(section: Section) -> VisionConfig:
    """Read a ``SiglipVisionConfig``."""
    section.expect("model_type", "siglip_vision_model")
    section.expect("hidden_act", "gelu_pytorch_tanh")
    section.expect("num_channels", 3)
    hidden, heads = section.integer("hidden_size", 768), section.integer("num_attention_heads", 12)
    _check_heads(section, "hidden_size", hidden, "num_attention_heads", heads)
    image_size = section.integer("image_size", 224)
    return VisionConfig(
        image_size=image_size,
        patch_size=section.integer("patch_size", 16, most=image_size),
        hidden_size=hidden,
        intermediate_size=section.integer("intermediate_size", 3072),
        layers=section.integer("num_hidden_layers", 12, most=_MAX_LAYERS),
        heads=heads,
        layer_norm_eps=section.number("layer_norm_eps", 1e-6),
    )


def _read_text(section: Section, stops: list[Section], *, tied: bool) -> TextConfig:
    """Read a ``Qwen2Config``; ``stops`` are the sections that may name bos and eos, first one first."""
    section.expect("hidden_act", "silu")
    section.expect("use_sliding_window", False)
    layers = section.integer("num_hidden_layers", 32, most=_MAX_LAYERS)
    section.expect("layer_types", ["full_attention"] * layers)
    hidden, heads = section.integer("hidden_size", 4096), section.integer("num_attention_heads", 32)
    # Qwen2Config: a missing key means 32, null means as many as heads.
    kv_heads = heads if section.is_null("num_key_value_heads") else section.integer("num_key_value_heads", 32)
    _check_heads(section, "hidden_size", hidden, "num_attention_heads", heads)
    _check_heads(section, "num_attention_heads", heads, "num_key_value_heads", kv_heads)
    section.expect("head_dim", hidden // heads)
    vocab_size = section.integer("vocab_size", 151936)
    last = vocab_size - 1
    bos = [i for stop in stops for i in stop.integers("bos_token_id", least=0, most=last)]
    eos = [i for stop in stops for i in stop.integers("eos_token_id", least=0, most=last)]
    eos += [IM_END_ID] if last >= IM_END_ID else []
    return TextConfig(
        hidden_size=hidden,
        intermediate_size=section.integer("intermediate_size", 22016),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        vocab_size=vocab_size,
        context_length=section.integer("max_position_embeddings", 32768),
        rope_theta=_rope_theta(section),
        rms_norm_eps=section.number("rms_norm_eps", 1e-6),
        tied=tied,
        bos_id=bos[0] if bos else None,
        eos_ids=tuple(dict.fromkeys(eos)),
    )


def _check_heads(section: Section, key: str, value: int, by_key: str, by: int) -> None:
    if value % by:
        raise UnsupportedCheckpointError(
            f"{section.where}{key} is {value}, not divisible by {by_key} {by}", hint=DAMAGED_HINT
        )


def _rope_theta(section: Section) -> float:
    """Rotary base: ``rope_theta`` in transformers 4, in ``rope_parameters`` in 5. Scaled RoPE is refused."""
    scaling, parameters = section.section("rope_scaling"), section.section("rope_parameters")
    for rope in (scaling, parameters):
        rope.expect("rope_type", "default")
        rope.expect("type", "default")
        rope.expect("factor", None)
    return parameters.number("rope_theta", section.number("rope_theta", 10000.0))


def _aspect_ratio(root: Section, key: str, *, absent: str) -> str:
    value = root.get(key, absent)
    if not isinstance(value, str) or not ASPECT_RATIO.fullmatch(value):
        message = f"{root.where}{key} is {show(value)}, must be anyres or anyres_max_N"
        raise UnsupportedCheckpointError(message, hint=SCOPE_HINT)
    return value


def _listed(value: object, image_size: int) -> object:
    """Parse the two string forms that LLaVA-NeXT's ``process_anyres_image`` takes into a list of pairs.

    ``"(1x1),...,(6x6)"`` means all grids from the first to the last, in tiles; others are Python lists.
    """
    if not isinstance(value, str):
        return value
    corners = [(int(width), int(height)) for width, height in re.findall(r"\((\d{1,4})x(\d{1,4})\)", value)]
    if not corners:
        try:
            return parse_json(value.replace("(", "[").replace(")", "]"))
        except ValueError:
            return value
    (width_from, height_from), (width_to, height_to) = corners[0], corners[-1]
    widths, heights = range(width_from, width_to + 1), range(height_from, height_to + 1)
    if len(widths) * len(heights) > _MAX_PINPOINTS:
        return value
    return [[width * image_size, height * image_size] for width in widths for height in heights]


def _pinpoints(value: object, image_size: int) -> tuple[tuple[int, int], ...]:
    """Check pairs of pixels, each a multiple of the tile's side; their order is kept."""
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_PINPOINTS:
        message = f"config.json: image_grid_pinpoints is {show(value)}, must be a list of pairs"
        raise CheckpointError(message, hint=DAMAGED_HINT)
    for pair in value:
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or not all(type(n) is int and n > 0 and n % image_size == 0 for n in pair):
            message = f"config.json: image_grid_pinpoints has {show(pair)}, must be multiples of {image_size}"
            raise CheckpointError(message, hint=DAMAGED_HINT)
    return tuple((first, second) for first, second in value)


def _token_id(root: Section, name: str, absent: int, vocab_size: int) -> int:
    """A token id, under ``image_token_id`` or ``image_token_index``."""
    key = f"{name}_id" if root.get(f"{name}_id") is not None else f"{name}_index"
    return root.integer(key, absent, least=0, most=vocab_size - 1)


def _dtype(root: Section) -> str | None:
    value = root.get("dtype", root.get("torch_dtype"))
    return value if isinstance(value, str) else None
