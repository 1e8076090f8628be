//! The description of one attention, independent of the exporter.

use crate::graph::NodeId;
use crate::recognize::append::CacheKind;
use crate::recognize::shape_reader::ShapeReader;

/// The form of an attention in the graph, such as the operator `Attention`. Reports show the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialect(pub &'static str);

impl Dialect {
    /// MatMul, Softmax, MatMul with explicit repeat_kv. All other dialects are named after their operator.
    pub const MATMUL: Self = Self("matmul-softmax");

    /// The operator of onnxruntime-genai's models, which alone reads integers of fewer than 8 bits.
    pub const GROUPED_QUERY: Self = Self("GroupQueryAttention");

    /// The name.
    pub fn name(self) -> &'static str {
        self.0
    }
}

/// The cache of keys or values: a past input and a present output [B, G, length, size]. The length is that of the past
/// and new rows, or the capacity of a static cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// How the new rows join the past.
    pub kind: CacheKind,
    /// The new rows [B, T, G*size], if the cache has the heads on one axis: past, present and the values between are
    /// then [B, length, G*size].
    pub packed: Option<String>,
    /// Graph input [B, G, P, size]; `None` in a prefill graph, which only fills the cache.
    pub past: Option<String>,
    /// The values between the past and `append`, made by pass-through nodes, from the input of `append` back. Empty if
    /// `append` reads the graph input itself.
    pub received: Vec<String>,
    /// The rows [B, G, P+T, size] that the attention reads: the output of `append`.
    pub joined: String,
    /// The values between `joined` and the graph output, made by pass-through nodes, the graph output last. Empty if
    /// `joined` is the graph output itself.
    pub returned: Vec<String>,
    /// The node that makes `joined`: the `Concat` or `TensorScatter` of past and new rows; without a past, the node that
    /// makes the new rows.
    pub append: NodeId,
}

impl Cache {
    /// Graph output [B, G, P+T, size].
    pub fn present(&self) -> &str {
        self.returned.last().unwrap_or(&self.joined)
    }

    /// The first input of `append`; `None` in a prefill graph.
    pub fn appended_to(&self) -> Option<&str> {
        let past = self.past.as_ref()?;
        Some(self.received.first().unwrap_or(past))
    }
}

/// Why the cached rows of one side span fewer dimensions than they have channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fewer {
    /// Some channels are equal to others.
    Copied,
    /// One stored weight projects them from fewer inputs than there are channels.
    Projected,
    /// Some channels are equal to others, and some are projected from fewer inputs.
    Both,
}

impl Fewer {
    /// The reason in words.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Copied => "heads are repeated before they are cached",
            Self::Projected => "heads are projected from fewer numbers than they hold",
            Self::Both => {
                "heads share channels, and are projected from fewer numbers than they hold"
            }
        }
    }
}

/// Keys or values: where they come from and how the product reads them.
#[derive(Debug, Clone, PartialEq)]
pub struct Side {
    /// The new rows [B, G, T, size], as they enter the cache (or the repetition, if there is no cache).
    pub new: String,
    /// The value [B, G, S, size] that the repetition starts from: the present, or `new` without a cache. It is
    /// [B, S, G*size] if the cache has the heads on one axis.
    pub source: String,
    /// The cache, if there is one.
    pub cache: Option<Cache>,
    /// Product of all constant factors between `source` and the product.
    pub scale: f64,
    /// Head size: d for keys, dv for values.
    pub size: usize,
    /// The rank of the cached rows: the dimension of the subspace that contains the row [G*size] of every token,
    /// whatever the model's inputs are. At most G*size.
    pub rank: usize,
    /// Why `rank` is less than G*size, if it is.
    pub fewer: Option<Fewer>,
    /// ONNX element type in which the product with this side runs.
    pub product_type: i32,
    /// The values from `source` (included) to the operand of the product (included).
    pub path: Vec<String>,
    /// `Shape` nodes that read one of these values, or the past.
    pub shape_readers: Vec<ShapeReader>,
}

/// One attention, proved to be `softmax(f(q · repeat_kv(K)ᵀ)) · repeat_kv(V)`. A rewrite keeps `f` (scale, softcap,
/// mask).
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// The layer number: the position among the attentions of the model, from 0. Attentions in the branches of an `If`
    /// have the same number.
    pub layer: usize,
    /// The branch or loop body that holds it, such as `then_branch of If 'merged'`; `None` in the main graph.
    pub within: Option<String>,
    /// The module that the nodes come from, if their names or metadata contain it; otherwise the score product's name.
    pub name: String,
    /// Its form in the graph.
    pub dialect: Dialect,
    /// H, query heads.
    pub heads: usize,
    /// G, key-value heads.
    pub kv_heads: usize,
    /// ONNX element type of the cached rows.
    pub elem_type: i32,
    /// ONNX element type of the present output; `elem_type` if there is no cache.
    pub cached_type: i32,
    /// The query [B, H, T, d] as it enters the score product.
    pub query: String,
    /// The product of queries and keys; its output is [B, H, T, S].
    pub score: NodeId,
    /// The product of probabilities and values; its output is [B, H, T, dv].
    pub output: NodeId,
    /// The probabilities [B, H, T, S] as they enter the value product.
    pub probabilities: String,
    /// The keys.
    pub key: Side,
    /// The values.
    pub value: Side,
    /// The earlier layer that reads the same cache, where there is one: the layer has no cache of its own.
    pub shares: Option<usize>,
}

impl Site {
    /// Number of cached elements per token in this layer: G*(d + dv).
    pub fn cached_numbers(&self) -> usize {
        self.kv_heads * (self.key.size + self.value.size)
    }

    /// The rank at which the rewrite is exact: the larger of G*d and G*dv.
    pub fn full_rank(&self) -> usize {
        self.kv_heads * self.key.size.max(self.value.size)
    }

    /// Whether the attention has a KV cache.
    pub fn is_cached(&self) -> bool {
        self.key.cache.is_some()
    }

    /// Whether its cache is a buffer of constant length.
    pub fn has_static_cache(&self) -> bool {
        let sides = [&self.key, &self.value].into_iter();
        let mut caches = sides.filter_map(|side| side.cache.as_ref());
        caches.any(|cache| cache.kind == CacheKind::Static)
    }

    /// Whether it has a KV cache, and no earlier layer has the same.
    pub fn has_own_cache(&self) -> bool {
        self.is_cached() && self.shares.is_none()
    }
}
