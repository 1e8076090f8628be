//! Mixtures of experts, expanded into primitives.

use gqa2mla_passes::graph::build::node;
use gqa2mla_passes::graph::{attribute, float_attribute, int_attribute};
use gqa2mla_passes::onnx::NodeProto;

/// Expands ONNX Runtime's `MoE` with SwiGLU whose gate and linear part alternate, and routing weights that are normalized over
/// the chosen experts: the kind of gpt-oss. Every expert reads every token, and those that are not chosen have the weight 0.
/// `None` for other nodes.
///
/// ```text
/// x [.., D], router [N, E], w_1 [E, 2F, D], b_1 [E, 2F], w_2 [E, D, F], b_2 [E, D]
/// gate, linear = x w_1[e]ᵀ + b_1[e]
/// y = sum over the chosen e of p_e ((gate sigmoid(alpha gate) (linear + beta)) w_2[e]ᵀ + b_2[e])
/// ```
#[must_use]
pub fn lowered(moe: &NodeProto) -> Option<Vec<NodeProto>> {
    let is_moe = moe.domain() == "com.microsoft" && moe.op_type() == "MoE";
    let activation = attribute(moe, "activation_type").and_then(|a| a.s.as_deref());
    let known = activation == Some(b"swiglu")
        && int_attribute(moe, "swiglu_fusion", 0) == 1
        && int_attribute(moe, "normalize_routing_weights", 0) == 1
        && int_attribute(moe, "use_sparse_mixer", 0) == 0;
    let more = moe.input.iter().skip(6).any(|name| !name.is_empty());
    if !is_moe || !known || more {
        return None;
    }
    let [x, router, w_1, b_1, w_2, b_2] = [0, 1, 2, 3, 4, 5]
        .map(|at: usize| moe.input.get(at).filter(|name| !name.is_empty()).cloned());
    let (x, router, w_1, w_2) = (x?, router?, w_1?, w_2?);
    let output = moe.output.first()?;
    let mut graph = Expanded {
        of: output.clone(),
        nodes: Vec::new(),
    };
    let chosen = graph.ints(&[int_attribute(moe, "k", 1)]);
    let [first, second, last] = [0, 1, -1].map(|n| graph.ints(&[n]));
    let end = graph.ints(&[i64::MAX]);
    let two = graph.ints(&[2]);

    let tokens = graph.add("Flatten", &[&x], |n| n.with_int("axis", -1));
    let hidden = graph.product(&tokens, &w_1, b_1.as_deref(), &second);
    let [mut gate, mut linear] = [&first, &second]
        .map(|start| graph.add("Slice", &[&hidden, start, &end, &last, &two], |n| n));
    if attribute(moe, "swiglu_limit").is_some() {
        let limit = float_attribute(moe, "swiglu_limit", 0.0);
        let [least, most] = [-limit, limit].map(|value| graph.float(value));
        gate = graph.add("Clip", &[&gate, "", &most], |n| n);
        linear = graph.add("Clip", &[&linear, &least, &most], |n| n);
    }
    let alpha = graph.float(float_attribute(moe, "activation_alpha", 1.0));
    let beta = graph.float(float_attribute(moe, "activation_beta", 0.0));
    let steep = graph.add("Mul", &[&gate, &alpha], |n| n);
    let open = graph.add("Sigmoid", &[&steep], |n| n);
    let gate = graph.add("Mul", &[&gate, &open], |n| n);
    let linear = graph.add("Add", &[&linear, &beta], |n| n);
    let active = graph.add("Mul", &[&gate, &linear], |n| n);
    let read = graph.product(&active, &w_2, b_2.as_deref(), &second);

    let best = graph.add("TopK", &[&router, &chosen], |n| n.with_int("axis", -1));
    let places = format!("{best}/indices");
    if let Some(top) = graph.nodes.last_mut() {
        top.output.push(places.clone());
    }
    let shares = graph.add("Softmax", &[&best], |n| n.with_int("axis", -1));
    let none = graph.add("Sub", &[&router, &router], |n| n);
    let shares = graph.add("ScatterElements", &[&none, &places, &shares], |n| {
        n.with_int("axis", -1)
    });
    let by_expert = graph.add("Transpose", &[&shares], |n| n.with_ints("perm", &[1, 0]));
    let by_expert = graph.add("Unsqueeze", &[&by_expert, &last], |n| n);
    let weighed = graph.add("Mul", &[&read, &by_expert], |n| n);
    let sum = graph.add("ReduceSum", &[&weighed, &first], |n| {
        n.with_int("keepdims", 0)
    });
    let shape = graph.add("Shape", &[&x], |n| n);
    let name = graph.name("Reshape");
    graph
        .nodes
        .push(node("Reshape", &name, &[&sum, &shape], &[output]));
    Some(graph.nodes)
}

/// The nodes in place of the one that makes `of`.
struct Expanded {
    of: String,
    nodes: Vec<NodeProto>,
}

impl Expanded {
    fn name(&self, op: &str) -> String {
        format!("{}/training/{}/{op}", self.of, self.nodes.len())
    }

    fn add(
        &mut self,
        op: &str,
        inputs: &[&str],
        change: impl FnOnce(NodeProto) -> NodeProto,
    ) -> String {
        let name = self.name(op);
        self.nodes.push(change(node(op, &name, inputs, &[&name])));
        name
    }

    /// The products [E, N, out] of `rows` [N, in] or [E, N, in] with `weight` [E, out, in] of each expert, plus `bias` [E, out].
    fn product(&mut self, rows: &str, weight: &str, bias: Option<&str>, second: &str) -> String {
        let turned = self.add("Transpose", &[weight], |n| n.with_ints("perm", &[0, 2, 1]));
        let product = self.add("MatMul", &[rows, &turned], |n| n);
        let Some(bias) = bias else {
            return product;
        };
        let bias = self.add("Unsqueeze", &[bias, second], |n| n);
        self.add("Add", &[&product, &bias], |n| n)
    }

    fn ints(&mut self, values: &[i64]) -> String {
        self.add("Constant", &[], |n| n.with_ints("value_ints", values))
    }

    fn float(&mut self, value: f32) -> String {
        self.add("Constant", &[], |n| n.with_float("value_float", value))
    }
}
