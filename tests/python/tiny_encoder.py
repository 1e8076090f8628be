"""Writes the encoder of a Whisper fixture, which has a decoder only: python tiny_encoder.py OUT BINS SIZE

input_features [B, BINS, T] -> last_hidden_state [B, T/2, SIZE], by one product with random weights.
"""
import sys

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save

path, bins, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
weights = np.random.default_rng(0).standard_normal((bins, size), dtype=np.float32)
constants = {"weights": weights, "start": np.array([0]), "end": np.array([2**31]), "axis": np.array([1]), "step": np.array([2])}
nodes = [
    helper.make_node("Transpose", ["input_features"], ["frames"], perm=[0, 2, 1]),
    helper.make_node("Slice", ["frames", "start", "end", "axis", "step"], ["halved"]),
    helper.make_node("MatMul", ["halved", "weights"], ["last_hidden_state"]),
]
graph = helper.make_graph(
    nodes, "encoder",
    [helper.make_tensor_value_info("input_features", TensorProto.FLOAT, ["batch", bins, "frames"])],
    [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "length", size])],
    [numpy_helper.from_array(value, name) for name, value in constants.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
checker.check_model(model)
save(model, path)
