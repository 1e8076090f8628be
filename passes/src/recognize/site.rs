//! What one attention is, whatever exporter wrote it.

use crate::graph::NodeId;
use crate::recognize::shape_reader::ShapeReader;

/// How an attention is spelled in the graph: `Attention`, say. Reports use the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialect(pub &'static str);

impl Dialect {
    /// MatMul, Softmax, MatMul with the repetition written out. Every other dialect is called as its operator.
    pub const MATMUL: Self = Self("matmul-softmax");

    /// The name.
    pub fn name(self) -> &'static str {
        self.0
    }
}

/// The cache of one side: a past input that grows to a present output along axis 2 of [B, G, length, size].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Graph input [B, G, P, size]; `None` in a graph that only fills the cache.
    pub past: Option<String>,
    /// The values between the past and the `Concat`, made by nodes that only pass it on: what the `Concat` reads first.
    /// Empty where the `Concat` reads the graph input itself.
    pub received: Vec<String>,
    /// The rows [B, G, P+T, size] that the attention reads: the output of `append`.
    pub joined: String,
    /// The values between `joined` and the graph output, made by nodes that only pass it on: the graph output last. Empty
    /// where `joined` is the graph output itself.
    pub returned: Vec<String>,
    /// The node that makes `joined`: the `Concat` of past and new, or what makes the new rows.
    pub append: NodeId,
}

impl Cache {
    /// Graph output [B, G, P+T, size].
    pub fn present(&self) -> &str {
        self.returned.last().unwrap_or(&self.joined)
    }

    /// The past as the `Concat` reads it; `None` in a graph that only fills the cache.
    pub fn appended_to(&self) -> Option<&str> {
        let past = self.past.as_ref()?;
        Some(self.received.first().unwrap_or(past))
    }
}

/// Why the rows of one side take fewer directions than they have channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fewer {
    /// Channels are copies of others.
    Copied,
    /// They are projected from fewer numbers than they are.
    Projected,
    /// Some are copies, and others are projected from fewer numbers.
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
    /// The new rows [B, G, T, size] of this step, as they enter the cache (or the product, without one).
    pub new: String,
    /// The value [B, G, S, size] that the repetition starts from: the present, or `new` without a cache.
    pub source: String,
    /// The cache, if this side has one.
    pub cache: Option<Cache>,
    /// Every constant factor between `source` and the product, multiplied.
    pub scale: f64,
    /// Width of one head: d for keys, dv for values.
    pub size: usize,
    /// Number of directions that the cached rows of a token can take, whatever the model is fed: G*size, or less.
    pub rank: usize,
    /// Why it is less, where it is.
    pub fewer: Option<Fewer>,
    /// ONNX element type in which the product with this side runs.
    pub product_type: i32,
    /// The values from `source` (included) to the operand of the product (included).
    pub path: Vec<String>,
    /// Nodes that ask for the shape of one of these values, or of the past.
    pub shape_readers: Vec<ShapeReader>,
}

/// One attention, proved to be `softmax(f(q · repeat_kv(K)ᵀ)) · repeat_kv(V)` for some `f` that stays as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// Position among the attentions of the model, from 0; the branches of an `If` count alike.
    pub layer: usize,
    /// The branch or loop body that holds it, such as `then_branch of If 'merged'`; `None` in the main graph.
    pub within: Option<String>,
    /// The name of the module the nodes come from, as far as their names tell; else that of the score product.
    pub name: String,
    /// How it was spelled.
    pub dialect: Dialect,
    /// H, query heads.
    pub heads: usize,
    /// G, key-value heads.
    pub kv_heads: usize,
    /// ONNX element type of the rows that are cached.
    pub elem_type: i32,
    /// ONNX element type of the cache at the graph's interface; that of the rows without a cache.
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
}

impl Site {
    /// Numbers cached a token and layer: G*(d + dv).
    pub fn cached_numbers(&self) -> usize {
        self.kv_heads * (self.key.size + self.value.size)
    }

    /// The rank at which the rewrite is exact: the wider of G*d and G*dv.
    pub fn full_rank(&self) -> usize {
        self.kv_heads * self.key.size.max(self.value.size)
    }

    /// Whether the site has a cache that a latent can replace.
    pub fn is_cached(&self) -> bool {
        self.key.cache.is_some()
    }
}
