"""A pass for Olive that makes the KV cache of an ONNX model smaller. README.md beside this file shows a run."""

from pathlib import Path

from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam

import gqa2mla


class LatentAttention(Pass):
    """Rewrites grouped-query attention to latent attention. The pass fails if the rewrite is refused, or its output fails validation."""

    @classmethod
    def _default_config(cls, accelerator_spec):
        return {
            "options": PassConfigParam(
                type_=dict,
                default_value={},
                description="Keyword arguments of gqa2mla.rewrite, such as cache_ratio and text. Without any, the rewrite is exact.",
            ),
        }

    def _run_for_config(self, model, config, output_model_path):
        out = resolve_onnx_path(output_model_path, Path(model.model_path).name)
        report = gqa2mla.rewrite(model.model_path, out, **config.options)
        attributes = dict(model.model_attributes or {}, gqa2mla=report["rewrite"])
        folder, name = Path(out).parent, Path(out).name
        return ONNXModelHandler(model_path=str(folder), onnx_file_name=name, model_attributes=attributes)
