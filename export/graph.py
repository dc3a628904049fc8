"""An ONNX graph that answers who makes a tensor, and can be searched for a pattern and rewritten.

A pattern is a tree. `("Add", a, b)` is a node of that kind, whose inputs match `a` and `b` in their
order (of Add and Mul in any order); inputs that a pattern does not name may be anything. A text
stands for any tensor, the same wherever it is repeated; a `Constant` for a constant one, a number
for a constant of that value.
"""

import dataclasses
import itertools
import math

import numpy as np
import onnx
from onnx import helper, numpy_helper

_COMMUTE = ("Add", "Mul")


@dataclasses.dataclass(frozen=True)
class Constant:
    """A pattern: a tensor whose value is known; it is found under this name."""

    name: str


class Graph:
    """A model's graph.

    Args:
      model: an `onnx.ModelProto`, which is changed in place.
    """

    def __init__(self, model):
        self.model = model
        self._fresh = itertools.count()
        self._index()

    @property
    def nodes(self):
        """The nodes, each after those whose outputs it takes."""
        return self.model.graph.node

    def _index(self):
        """Looks up anew who makes what."""
        self._makers = {name: node for node in self.nodes for name in node.output}
        self._stored = {tensor.name: tensor for tensor in self.model.graph.initializer}

    def maker(self, name):
        """The node whose output has this name, or None."""
        return self._makers.get(name)

    def users(self, name):
        """The nodes that take the tensor of this name."""
        return [node for node in self.nodes if name in node.input]

    def value(self, name):
        """A constant's value as an array; None for what is no constant."""
        if name in self._stored:
            return numpy_helper.to_array(self._stored[name])
        node = self.maker(name)
        if node is None or node.op_type != "Constant" or node.attribute[0].name != "value":
            return None
        return numpy_helper.to_array(node.attribute[0].t)

    def constant(self, value, name):
        """Stores an array; answers the name it has got, which begins with `name`."""
        name = f"{name}_{next(self._fresh)}"
        tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
        self.model.graph.initializer.append(tensor)
        self._stored[name] = tensor
        return name

    def add(self, kind, inputs, name, domain="", outputs=(True,), **attributes):
        """Adds a node; answers the name of its output, or a list where it has several.

        `outputs` says which of its outputs are wanted.
        """
        name = f"{name}_{next(self._fresh)}"
        names = [f"{name}:{i}" if wanted else "" for i, wanted in enumerate(outputs)]
        node = helper.make_node(kind, inputs, names, name, domain=domain, **attributes)
        self.nodes.append(node)
        made = [each for each in names if each]
        self._makers.update(dict.fromkeys(made, self.nodes[-1]))
        return made[0] if len(made) == 1 else made

    def reshape(self, x, shape, name):
        """Adds a Reshape; answers the name of its output."""
        return self.add("Reshape", [x, self.constant(np.array(shape), name)], name)

    def linear(self, x, kernel, bias, name):
        """Adds x·kernel + bias; without a bias where it is None."""
        product = self.add("MatMul", [x, self.constant(kernel, f"{name}/kernel")], name)
        if bias is None:
            return product
        return self.add("Add", [product, self.constant(bias, f"{name}/bias")], name)

    def first(self, x, count, name):
        """Adds what cuts the first tokens out of [B, T, D]."""
        ends = [self.constant(np.array([i]), name) for i in (0, count, 1)]
        return self.add("Slice", [x, *ends], name)

    def replace(self, old, new):
        """Everyone who took the tensor `old` takes `new`; an output of the graph keeps its name.

        What makes `new` may be made of `old`, and goes on to be.
        """
        for node in self.nodes:
            if new in node.output:
                continue
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new
        if old in [output.name for output in self.model.graph.output]:
            self._rename(old, f"{old}_{next(self._fresh)}")
            self._rename(new, old)

    def _rename(self, old, new):
        """Gives a tensor that a node makes another name."""
        node = self._makers.pop(old)
        for other in [node, *self.users(old)]:
            for names in (other.input, other.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new
        self._makers[new] = node

    def find(self, pattern):
        """Where a pattern is: yields (name of the root's output, {name: tensor's name}).

        What is found may be replaced at once. Values of `Constant` are arrays.
        """
        for node in list(self.nodes):
            found = {}
            if self.match(pattern, node.output[0], found):
                yield node.output[0], found

    def match(self, pattern, name, found):
        """Whether a tensor is made as a pattern says; `found` gets the tensors it names."""
        if isinstance(pattern, str):
            return found.setdefault(pattern, name) == name
        if isinstance(pattern, tuple):
            return self._match_node(pattern, name, found)
        value = self.value(name)
        if value is None:
            return False
        if isinstance(pattern, Constant):
            found[pattern.name] = value
            return True
        return value.size == 1 and math.isclose(value.item(), pattern, rel_tol=1e-6)

    def _match_node(self, pattern, name, found):
        kind, *wanted = pattern
        node = self.maker(name)
        if node is None or node.op_type != kind or len(node.input) < len(wanted):
            return False
        orders = [list(node.input)]
        if kind in _COMMUTE:
            orders.append(orders[0][::-1])
        for order in orders:
            tried = dict(found)
            if all(self.match(*pair, tried) for pair in zip(wanted, order, strict=False)):
                found.update(tried)
                return True
        return False

    def attribute(self, name, which, default=None):
        """An attribute of the node that makes a tensor."""
        for attribute in self.maker(name).attribute:
            if attribute.name == which:
                return helper.get_attribute_value(attribute)
        return default

    def tidy(self):
        """Drops what no output needs, and puts the nodes into an order in which they can run."""
        ordered, made = [], set()

        def visit(name):
            stack = [(name, False)]
            while stack:
                name, ready = stack.pop()
                node = self.maker(name)
                if node is None or node.output[0] in made:
                    continue
                if ready:
                    ordered.append(node)
                    made.update(node.output)
                else:
                    stack += [(name, True), *((each, False) for each in node.input if each)]

        for output in self.model.graph.output:
            visit(output.name)
        ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
        needed = {name for node in ordered for name in node.input}
        stored = [tensor for tensor in self.model.graph.initializer if tensor.name in needed]
        stored = [onnx.TensorProto.FromString(t.SerializeToString()) for t in stored]
        graph = self.model.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(ordered)
        graph.initializer.extend(stored)
        self._name_domains()
        self._index()

    def _name_domains(self):
        """Says whose operators are in the graph, and of which version."""
        versions = {each.domain: each.version for each in self.model.opset_import}
        del self.model.opset_import[:]
        for domain in sorted({"", *(node.domain for node in self.nodes)}):
            version = versions.get(domain, 1)
            self.model.opset_import.append(helper.make_opsetid(domain, version))
