"""An fp32 vision encoder with its matrices in half precision.

In: a bundle's ``vision.onnx``. Out: the very files that ``export --vision fp16`` writes: half the size, and
the same arithmetic in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onevision.errors import QuantError
from onevision.export.vision import WeightWriter, cast_halves
from onevision.files import disk_space, scratch_folder
from onevision.graphs.tower import Tower

if TYPE_CHECKING:
    from pathlib import Path

    from onevision.progress import Advance


def halve_encoder(source: Path, target: Path, advance: Advance | None = None) -> None:
    """Write an encoder's matrices in fp16.

    Args:
        source: ``vision.onnx`` of an fp32 bundle.
        target: The ONNX file to make or replace; its matrices go to ``<name>.data`` beside it.
        advance: Told the fraction that is done.

    Raises:
        QuantError: A graph that is not the export's, or weights that are not finite.
        ExportError: The disk is full, or a weight does not fit in fp16. Nothing is written then.
    """
    import onnx

    tower = Tower.read(source)
    data_path = target.with_name(f"{target.name}.data")
    with disk_space(target.absolute().parent, tower.weight_bytes // 2), scratch_folder(target) as scratch:
        model = onnx.load(source, load_external_data=False)
        whole = list(model.graph.initializer)
        if any(tensor.data_type != onnx.TensorProto.FLOAT for tensor in whole):
            raise QuantError(f"{source} is not in fp32", hint="start from a bundle with --vision fp32")
        del model.graph.initializer[:]
        with (scratch / data_path.name).open("wb") as data:
            writer = WeightWriter(data, data_path.name, "fp16")
            for done, tensor in enumerate(whole, 1):
                model.graph.initializer.append(writer.write(tensor.name, tower.tensor(tensor.name)))
                if advance:
                    advance(done / len(whole))
        cast_halves(model.graph)
        (scratch / target.name).write_bytes(model.SerializeToString(deterministic=True))
        (scratch / data_path.name).replace(data_path)
        (scratch / target.name).replace(target)
