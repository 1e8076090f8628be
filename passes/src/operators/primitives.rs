//! The builder for expansions of operators: nodes, shared constants, masks, and the core of products and softmax.

use std::collections::HashMap;

use bytes::Bytes;

use crate::facts::Facts;
use crate::graph::build::{int64_vector, node, shared_constant, vector_name};
use crate::graph::{Graph, label};
use crate::onnx::{NodeProto, TensorProto, tensor_proto::DataType};

/// Collects the nodes and initializers that replace one operator.
pub struct Primitives<'g> {
    /// The graph of the operator.
    pub graph: &'g Graph<'g>,
    /// The facts of its values.
    pub facts: &'g Facts,
    prefix: String,
    metadata: NodeProto,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    /// Values made by earlier expansions, by their sharing key.
    known: &'g HashMap<String, String>,
    made: HashMap<String, String>,
}

/// The parts of an attention after projections, rotation and cache.
pub struct Core<'s> {
    /// Queries [B, H, T, d].
    pub query: &'s str,
    /// Keys [B, G, S, d].
    pub key: &'s str,
    /// Values [B, G, S, dv].
    pub value: &'s str,
    /// H.
    pub heads: i64,
    /// G.
    pub kv_heads: i64,
    /// d.
    pub head_size: i64,
    /// dv.
    pub value_size: i64,
    /// Factor of the scores.
    pub scale: f64,
    /// Softcap: bound of the scores by tanh; 0 for none.
    pub softcap: f32,
    /// Additive biases of the scores, each broadcastable to [B, H, T, S].
    pub biases: Vec<String>,
    /// Attention sink: scores `[H]` of an additional column of the softmax without a value.
    pub sink: Option<&'s str>,
    /// Whether the output of a fully masked row is zero (instead of NaN).
    pub guard: bool,
    /// ONNX element type.
    pub elem_type: i32,
    /// Name of the output.
    pub output: &'s str,
    /// Whether the output is [B, T, H*dv]; otherwise [B, H, T, dv].
    pub packed: bool,
}

/// `label_of`, with `+` appended until no node name of the graph has it as a path prefix. Earlier rewrites of the same
/// operator may have left such nodes.
fn free_prefix(graph: &Graph, label_of: &str) -> String {
    let mut prefix = label_of.to_owned();
    while graph.nodes().any(|(_, n)| {
        let rest = label(n).strip_prefix(prefix.as_str());
        rest.is_some_and(|rest| rest.starts_with('/'))
    }) {
        prefix.push('+');
    }
    prefix
}

impl<'g> Primitives<'g> {
    /// Starts the expansion of `operator`, a node of `graph`. `known` holds shared values of earlier expansions, by
    /// sharing key.
    pub fn new(
        graph: &'g Graph<'g>,
        facts: &'g Facts,
        operator: &NodeProto,
        known: &'g mut HashMap<String, String>,
    ) -> Self {
        Self {
            graph,
            facts,
            prefix: free_prefix(graph, label(operator)),
            metadata: NodeProto {
                metadata_props: operator.metadata_props.clone(),
                ..NodeProto::default()
            },
            nodes: Vec::new(),
            initializers: Vec::new(),
            known,
            made: HashMap::new(),
        }
    }

    /// The nodes, the initializers, and the new values that later operators may share.
    pub fn finish(self) -> (Vec<NodeProto>, Vec<TensorProto>, HashMap<String, String>) {
        (self.nodes, self.initializers, self.made)
    }

    /// Adds a node of the default domain; its output is named after the operator and `part`.
    pub fn op(&mut self, op: &str, part: &str, inputs: &[&str]) -> String {
        self.with(op, part, inputs, |n| n)
    }

    /// Adds a node of the default domain, modified by `change`, and returns its output.
    pub fn with(
        &mut self,
        op: &str,
        part: &str,
        inputs: &[&str],
        change: impl FnOnce(NodeProto) -> NodeProto,
    ) -> String {
        let name = format!("{}/{part}", self.prefix);
        self.push(change(node(op, &name, inputs, &[&name])));
        name
    }

    /// `name`, with `+` appended until no value of the graph has it.
    pub fn free(&self, mut name: String) -> String {
        while self.graph.is_taken(&name) {
            name.push('+');
        }
        name
    }

    /// Adds a node with the given output names.
    pub fn named(
        &mut self,
        op: &str,
        part: &str,
        inputs: &[&str],
        outputs: &[&str],
        change: impl FnOnce(NodeProto) -> NodeProto,
    ) {
        let name = format!("{}/{part}", self.prefix);
        self.push(change(node(op, &name, inputs, outputs)));
    }

    /// Adds `node`, which takes the place of the operator.
    pub fn keep(&mut self, node: NodeProto) {
        self.push(node);
    }

    fn push(&mut self, mut node: NodeProto) {
        node.metadata_props
            .clone_from(&self.metadata.metadata_props);
        self.nodes.push(node);
    }

    /// An int64 vector, named by its content.
    pub fn vector(&mut self, values: &[i64]) -> String {
        self.constant(int64_vector(&vector_name(values), values))
    }

    /// A scalar of the type `elem_type`, named by its content.
    pub fn scalar(&mut self, elem_type: i32, value: f64) -> String {
        let (kind, bytes): (&str, Bytes) = match DataType::try_from(elem_type) {
            Ok(DataType::Float16) => (
                "f16",
                half::f16::from_f64(value).to_le_bytes().to_vec().into(),
            ),
            Ok(DataType::Bfloat16) => (
                "bf16",
                half::bf16::from_f64(value).to_le_bytes().to_vec().into(),
            ),
            Ok(DataType::Double) => ("f64", value.to_le_bytes().to_vec().into()),
            Ok(DataType::Int64) => ("i64", (value as i64).to_le_bytes().to_vec().into()),
            _ => ("f32", (value as f32).to_le_bytes().to_vec().into()),
        };
        self.constant(TensorProto {
            name: Some(format!("mla/{kind}({value})")),
            data_type: Some(elem_type),
            raw_data: Some(bytes),
            ..TensorProto::default()
        })
    }

    fn constant(&mut self, tensor: TensorProto) -> String {
        let (name, new) = shared_constant(self.graph, tensor);
        if let Some(new) = new.filter(|_| !self.initializers.iter().any(|t| t.name() == name)) {
            self.initializers.push(new);
        }
        name
    }

    /// A value that all operators with the same `key` share; `make` creates it the first time.
    pub fn shared(&mut self, key: &str, make: impl FnOnce(&mut Self) -> String) -> String {
        if let Some(value) = self.known.get(key).or_else(|| self.made.get(key)) {
            return value.clone();
        }
        let value = make(self);
        self.made.insert(key.to_owned(), value.clone());
        value
    }

    /// The size of axis `axis` of `value`, as an int64 vector of one element.
    pub fn size(&mut self, part: &str, value: &str, axis: i64) -> String {
        let shape = self.op("Shape", &format!("{part}/shape"), &[value]);
        let index = self.vector(&[axis]);
        self.with("Gather", part, &[&shape, &index], |n| n.with_int("axis", 0))
    }

    /// [B, length, heads*size] as [B, heads, length, size].
    pub fn heads(&mut self, part: &str, packed: &str, heads: i64, size: i64) -> String {
        let shape = self.vector(&[0, 0, heads, size]);
        let split = self.op("Reshape", &format!("{part}_BTHd"), &[packed, &shape]);
        self.with("Transpose", &format!("{part}_BHTd"), &[&split], |n| {
            n.with_ints("perm", &[0, 2, 1, 3])
        })
    }

    /// An additive mask [T, S]: 0 where query `start + i` attends to key `j`, that is, where `j <= start + i`, and `j >
    /// start + i - window` with a window; minus infinity elsewhere. `start`, `rows` (T) and `columns` (S) are values
    /// with one element.
    pub fn causal_bias(
        &mut self,
        start: &str,
        rows: &str,
        columns: &str,
        window: Option<i64>,
        elem_type: i32,
    ) -> String {
        let int64 = DataType::Int64 as i32;
        let (zero, one) = (self.scalar(int64, 0.0), self.scalar(int64, 1.0));
        let none = self.vector(&[]);
        let scalar = |s: &mut Self, part: &str, value: &str| s.op("Reshape", part, &[value, &none]);
        let (rows, columns, start) = (
            scalar(self, "mask/T", rows),
            scalar(self, "mask/S", columns),
            scalar(self, "mask/P", start),
        );
        let end = self.op("Add", "mask/end", &[&start, &rows]);
        let positions = self.op("Range", "mask/queries", &[&start, &end, &one]);
        let minus_one = self.vector(&[-1]);
        let positions = self.op(
            "Unsqueeze",
            "mask/queries_column",
            &[&positions, &minus_one],
        );
        let keys = self.op("Range", "mask/keys", &[&zero, &columns, &one]);
        let mut seen = self.op("LessOrEqual", "mask/causal", &[&keys, &positions]);
        if let Some(window) = window {
            let width = self.scalar(int64, window as f64);
            let first = self.op("Sub", "mask/before_window", &[&positions, &width]);
            let near = self.op("Greater", "mask/in_window", &[&keys, &first]);
            seen = self.op("And", "mask/seen", &[&seen, &near]);
        }
        self.bias_of(&seen, "mask", elem_type)
    }

    /// Converts a boolean mask to an additive one.
    pub fn bias_of(&mut self, seen: &str, part: &str, elem_type: i32) -> String {
        let (zero, hidden) = (
            self.scalar(elem_type, 0.0),
            self.scalar(elem_type, f64::NEG_INFINITY),
        );
        self.op("Where", part, &[seen, &zero, &hidden])
    }

    /// Adds products, mask and softmax; returns the output name of the score product.
    pub fn core(&mut self, core: &Core) -> String {
        let key = self.repeated("k", core.key, core.kv_heads, core.heads, core.head_size);
        let value = self.repeated("v", core.value, core.kv_heads, core.heads, core.value_size);
        let transposed = self.with("Transpose", "k_BHdS", &[&key], |n| {
            n.with_ints("perm", &[0, 1, 3, 2])
        });
        let scale = self.scalar(core.elem_type, core.scale);
        let scaled = self.op("Mul", "k_scaled", &[&transposed, &scale]);
        let product = self.op("MatMul", "score", &[core.query, &scaled]);
        let mut score = product.clone();
        if core.softcap > 0.0 {
            let cap = self.scalar(core.elem_type, core.softcap.into());
            let small = self.op("Div", "softcap/div", &[&score, &cap]);
            let bounded = self.op("Tanh", "softcap/tanh", &[&small]);
            score = self.op("Mul", "softcap", &[&bounded, &cap]);
        }
        for (position, bias) in core.biases.iter().enumerate() {
            score = self.op("Add", &format!("biased{position}"), &[&score, bias]);
        }
        let mut p = match core.sink {
            Some(sink) => self.softmax_with_sink(&score, sink, core),
            None => self.with("Softmax", "p", &[&score], |n| n.with_int("axis", -1)),
        };
        if core.guard {
            let empty = self.op("IsNaN", "p_empty", &[&p]);
            let zero = self.scalar(core.elem_type, 0.0);
            p = self.op("Where", "p_guarded", &[&empty, &zero, &p]);
        }
        if core.packed {
            let out = self.op("MatMul", "out_BHTd", &[&p, &value]);
            let rows = self.with("Transpose", "out_BTHd", &[&out], |n| {
                n.with_ints("perm", &[0, 2, 1, 3])
            });
            let shape = self.vector(&[0, 0, core.heads * core.value_size]);
            self.named("Reshape", "out", &[&rows, &shape], &[core.output], |n| n);
        } else {
            self.named("MatMul", "out", &[&p, &value], &[core.output], |n| n);
        }
        product
    }

    /// repeat_kv: head `h` reads KV head `floor(h / (heads / kv_heads))`.
    fn repeated(
        &mut self,
        part: &str,
        value: &str,
        kv_heads: i64,
        heads: i64,
        size: i64,
    ) -> String {
        if heads == kv_heads {
            return value.to_owned();
        }
        let two = self.vector(&[2]);
        let copies = self.vector(&[1, 1, heads / kv_heads.max(1), 1, 1]);
        let shape = self.vector(&[0, heads, -1, size]);
        let inserted = self.op("Unsqueeze", &format!("{part}_BG1Sd"), &[value, &two]);
        let expanded = self.op("Expand", &format!("{part}_BGsSd"), &[&inserted, &copies]);
        self.op("Reshape", &format!("{part}_BHSd"), &[&expanded, &shape])
    }

    /// Softmax with an attention sink: an additional column of scores, which is sliced off after the softmax.
    fn softmax_with_sink(&mut self, score: &str, sink: &str, core: &Core) -> String {
        let column = self.vector(&[1, core.heads, 1, 1]);
        let sink = self.op("Reshape", "sink_1H11", &[sink, &column]);
        let rows = self.op("Shape", "sink/query_shape", &[core.query]);
        let (zero, three, one) = (self.vector(&[0]), self.vector(&[3]), self.vector(&[1]));
        let rows = self.op("Slice", "sink/BHT", &[&rows, &zero, &three]);
        let target = self.with("Concat", "sink/BHT1", &[&rows, &one], |n| {
            n.with_int("axis", 0)
        });
        let sink = self.op("Expand", "sink_BHT1", &[&sink, &target]);
        let with_sink = self.with("Concat", "score_with_sink", &[score, &sink], |n| {
            n.with_int("axis", -1)
        });
        let all = self.with("Softmax", "p_with_sink", &[&with_sink], |n| {
            n.with_int("axis", -1)
        });
        let (minus_one, last) = (self.vector(&[-1]), self.vector(&[-1]));
        self.op("Slice", "p", &[&all, &zero, &minus_one, &last])
    }
}
