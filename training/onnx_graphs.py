"""Changes to ONNX graphs of synthesisers: durations as an output, and weights of 8 bits back to float32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def with_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The same model with the tensor `name` (float32) as its last output."""
    if name not in {output.name for output in model.graph.output}:
        model.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return model


class _Dequantizer:
    """Turns dynamically quantised products, convolutions and LSTMs back into plain ones.

    What follows a product multiplies by the scales of both sides; the input's becomes one, so that stays as it is.
    """

    _ONE = "dequantized_one"

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._stored = {tensor.name: tensor for tensor in graph.initializer}
        self._renamed: dict[str, str] = {}
        self.made: dict[str, np.ndarray] = {self._ONE: np.ones(1, np.float32)}
        for node in graph.node:
            if node.op_type == "DynamicQuantizeLinear":
                self._renamed[node.output[0]], self._renamed[node.output[1]] = node.input[0], self._ONE

    def _array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self._stored[name]).astype(np.float32)

    def _centred(self, weight: str, zero: str, axis: int) -> str:
        """Stores the weight less its zero point, one for each index of `axis`; returns its name."""
        name = f"{weight}_float"
        if name not in self.made:
            values, zeros = self._array(weight), self._array(zero) if zero else np.zeros(1, np.float32)
            shape = [1] * values.ndim
            if zeros.size > 1:
                shape[axis] = -1
            self.made[name] = values - zeros.reshape(shape)
        return name

    def _lstm_weight(self, weight: str, scale: str, zero: str) -> str:
        """Stored [directions, inputs, 4 hidden] with a scale for each direction or column; wanted the other way."""
        name = f"{weight}_float"
        if name not in self.made:
            values, scales, zeros = (self._array(part) for part in (weight, scale, zero))
            per = (-1, 1, 1) if scales.ndim == 1 else (scales.shape[0], 1, scales.shape[1])
            centred = (values - zeros.reshape(per)) * scales.reshape(per)
            self.made[name] = np.ascontiguousarray(centred.transpose(0, 2, 1))
        return name

    def node(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The replacement of a node; None where none is needed."""
        kind, inputs = node.op_type, [*node.input, *[""] * 12]
        if kind == "DynamicQuantizeLinear":
            return None
        value = self._renamed.get(inputs[0], inputs[0])
        if kind == "MatMulInteger":
            plain = helper.make_node("MatMul", [value, self._centred(inputs[1], inputs[3], -1)], list(node.output))
        elif kind == "ConvInteger":
            plain = helper.make_node("Conv", [value, self._centred(inputs[1], inputs[3], 0)], list(node.output))
        elif kind == "DynamicQuantizeLSTM":
            both = [self._lstm_weight(inputs[1], inputs[8], inputs[9]), self._lstm_weight(inputs[2], *inputs[10:12])]
            plain = helper.make_node("LSTM", [value, *both, *inputs[3:7]], list(node.output))
        else:
            for index, name in enumerate(node.input):
                node.input[index] = self._renamed.get(name, name)
            return node
        plain.name = node.name
        plain.attribute.extend(node.attribute)
        return plain


def _drop_integer_rounding(nodes: list[onnx.NodeProto]) -> None:
    """Drops rounding that served the int8 products alone, and casts its results to float32."""
    rounded = set()
    for node in nodes:
        if node.op_type == "Floor" and "quant" in node.input[0] + node.output[0]:
            node.op_type = "Identity"
            rounded.add(node.output[0])
    for node in nodes:
        if node.op_type == "Cast" and node.input[0] in rounded:
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == onnx.TensorProto.INT32:
                    attribute.i = onnx.TensorProto.FLOAT


def dequantized(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its weights of 8 bits as float32, and activations never quantised: as fast without VNNI.

    Reads dynamically quantised MatMul, Conv and LSTM nodes. Changes `model`.
    """
    graph = model.graph
    change = _Dequantizer(graph)
    nodes = [made for node in graph.node if (made := change.node(node)) is not None]
    _drop_integer_rounding(nodes)
    kept_nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept_nodes)
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    kept += [numpy_helper.from_array(values, name) for name, values in change.made.items() if name in used]
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return model
