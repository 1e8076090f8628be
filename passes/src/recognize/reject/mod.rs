//! Why an attention was not recognised: the nearest miss, in words that say what was expected and what was found.

mod catalogue;

use std::fmt;

/// An attention-like subgraph that is not rewritten, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Which attention of the graph it would have been, counted from 0 in graph order.
    pub layer: usize,
    /// The node at which the proof failed.
    pub node: String,
    /// What was expected there and what was found.
    pub reason: Reason,
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "layer {}: {} (node '{}')",
            self.layer, self.reason, self.node
        )
    }
}

/// Which operand of the attention a reason speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// The left operand of the score product.
    Query,
    /// The right operand of the score product.
    Key,
    /// The right operand of the value product.
    Value,
    /// The left operand of the value product.
    Probabilities,
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Query => "query",
            Self::Key => "key",
            Self::Value => "value",
            Self::Probabilities => "probabilities",
        })
    }
}

/// The reasons, one a user can act on each. docs/reasons.md has a row for every `code`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// Tile-like repetition: head `h` reads KV head `h mod G`.
    #[error(
        "the {operand} is repeated in an order that interleaves heads: query head h reads KV head h mod {kv_heads}, expected floor(h / {group})"
    )]
    InterleavedHeads {
        /// Key or value.
        operand: Operand,
        /// G.
        kv_heads: i64,
        /// H / G.
        group: i64,
    },
    /// The map from the cache to the product is none of the known ones.
    #[error("the {operand} reaches the product as {found}, expected {expected}")]
    OtherLayout {
        /// Key or value.
        operand: Operand,
        /// Which source element each axis reads.
        found: String,
        /// The repeat-KV map.
        expected: String,
    },
    /// An operator in front of the product whose map cannot be told.
    #[error(
        "the {operand} passes {op} between the cache and the product, whose effect on the heads cannot be proved: {detail}"
    )]
    Opaque {
        /// Key or value.
        operand: Operand,
        /// Operator type.
        op: String,
        /// What is missing.
        detail: String,
    },
    /// Heads picked in an order that is no repetition.
    #[error(
        "the {operand}'s heads are picked in the order {order:?}, which is no repetition of each head in turn"
    )]
    PermutedHeads {
        /// Key or value.
        operand: Operand,
        /// The indices of the `Gather`.
        order: Vec<i64>,
    },
    /// `Slice` of the cached value.
    #[error("only a part of the {operand} is read (axis {axis}), expected all of it")]
    PartialRead {
        /// Key or value.
        operand: Operand,
        /// Axis of the value that is sliced.
        axis: usize,
    },
    /// A scale computed at run time.
    #[error(
        "the {operand} is multiplied by '{scale}', a scale that is not constant, expected a constant scalar"
    )]
    ScaleNotConstant {
        /// Key or value.
        operand: Operand,
        /// The value that scales.
        scale: String,
    },
    /// A constant scale that differs along an axis.
    #[error(
        "the {operand} is multiplied by '{scale}', a constant that differs from element to element, expected one scalar"
    )]
    ScaleVaries {
        /// Key or value.
        operand: Operand,
        /// The value that scales.
        scale: String,
    },
    /// Another node computes with the cache or with the repeated key or value.
    #[error(
        "'{value}' on the way from the {operand} cache to the product is also read by {reader}, which a latent cache could not serve"
    )]
    SecondReader {
        /// Key or value.
        operand: Operand,
        /// The value that is read twice.
        value: String,
        /// Operator and name of the other reader.
        reader: String,
    },
    /// A graph output in the middle of the matched nodes.
    #[error(
        "'{value}' on the way from the {operand} cache to the product is an output of the graph, which a latent cache could not serve"
    )]
    OutputInside {
        /// Key or value.
        operand: Operand,
        /// The output.
        value: String,
    },
    /// K and V with different numbers of heads.
    #[error(
        "keys and values are repeated by different factors: {key} KV heads for the keys, {value} for the values"
    )]
    RepeatsDiffer {
        /// G of the keys.
        key: i64,
        /// G of the values.
        value: i64,
    },
    /// The cache does not grow along its sequence axis.
    #[error(
        "the {operand} cache '{past}' grows on axis {axis}, expected axis 2 of [batch, kv_heads, length, head_size]"
    )]
    CacheAxis {
        /// Key or value.
        operand: Operand,
        /// The past input.
        past: String,
        /// The axis of the `Concat`.
        axis: i64,
    },
    /// The present, the past with the new rows appended, is no output of the model.
    #[error(
        "the {operand} cache '{past}' goes in but its continuation '{present}' is no output of the graph"
    )]
    CacheNotReturned {
        /// Key or value.
        operand: Operand,
        /// The past input.
        past: String,
        /// The concatenated value.
        present: String,
    },
    /// Only one of K and V is cached.
    #[error("the key and the value are not cached alike: one has a past input, the other has none")]
    HalfCached,
    /// Keys and values of another sequence.
    #[error(
        "the {operand} '{value}' has another length than the query and no cache of this graph feeds it: cross-attention, which caches nothing that grows"
    )]
    CrossAttention {
        /// Key or value.
        operand: Operand,
        /// The value where the walk ended.
        value: String,
    },
    /// A cache that is written by other means than `Concat(past, new)`.
    #[error(
        "the {operand} cache '{value}' is built by {op}, expected Concat of a past input and the new rows, in that order"
    )]
    CacheForm {
        /// Key or value.
        operand: Operand,
        /// The operator.
        op: String,
        /// Its output.
        value: String,
    },
    /// What is cached is not what the product reads: rotated or normalized afterwards.
    #[error(
        "the {operand} cache '{past}' is changed by {op} after it is read, expected keys that are cached as the product reads them (after rotation)"
    )]
    ChangedAfterCaching {
        /// Key or value.
        operand: Operand,
        /// The past input.
        past: String,
        /// The operator that makes what the product reads.
        op: String,
    },
    /// The model is multi-head latent attention.
    #[error(
        "the {operand} comes from the cache '{past}', which is a latent already: this is multi-head latent attention, and there is nothing to gain"
    )]
    AlreadyLatent {
        /// Key or value.
        operand: Operand,
        /// The past input.
        past: String,
    },
    /// Shapes that are not [B, H, T, d].
    #[error("the {operand} '{value}' has shape {found}, expected {expected}")]
    OperandShape {
        /// Query, key or value.
        operand: Operand,
        /// Name of the value.
        value: String,
        /// Its shape.
        found: String,
        /// What it should have been.
        expected: String,
    },
    /// Softmax without a value product behind it, or with several.
    #[error("the probabilities reach {count} products, expected one product with the values")]
    ValueProducts {
        /// How many.
        count: usize,
    },
    /// Several score products in front of one softmax.
    #[error("the softmax adds up {count} products, expected one product of queries and keys")]
    ScoreProducts {
        /// How many.
        count: usize,
    },
    /// The shape of a replaced value is needed elsewhere and cannot be rebuilt.
    #[error(
        "the shape of '{value}' is needed by '{reader}' and cannot be told from the latent cache"
    )]
    ShapeReader {
        /// The value that goes away.
        value: String,
        /// The `Shape` node.
        reader: String,
    },
    /// Operators whose caches have no latent form here.
    #[error("operator {op} is not rewritten: {detail}")]
    UnsupportedOperator {
        /// Operator type.
        op: String,
        /// Why.
        detail: String,
    },
    /// A cache that only one branch of an `If` makes as an attention that was recognised.
    #[error(
        "the cache output '{present}' of If '{node}' is made by both branches, and only one of them was recognised"
    )]
    OtherBranch {
        /// The output of the `If`.
        present: String,
        /// The `If`.
        node: String,
    },
    /// Something stands between a product and the softmax that moves elements about.
    #[error(
        "the {what} pass {op} between the product and the softmax, expected them as [batch, heads, queries, keys] all the way"
    )]
    Rearranged {
        /// Scores or probabilities.
        what: &'static str,
        /// The operator.
        op: String,
    },
    /// A cache that no attention accounts for.
    #[error(
        "the cache '{past}' grows here and is read by {reader}, but no softmax over a product with it was found"
    )]
    UnknownReader {
        /// The past input.
        past: String,
        /// Operator type of what reads the grown cache.
        reader: String,
    },
    /// The output that continues a cache is another one's by name, or differs from branch to branch.
    #[error(
        "the cache that goes in as '{past}' comes out as '{present}', which continues another one"
    )]
    CrossedCaches {
        /// The past input.
        past: String,
        /// The output.
        present: String,
    },
    /// Another attention reads the same cache.
    #[error(
        "the cache '{past}' also serves layer {other}, and a latent cache is made for one attention"
    )]
    SharedCache {
        /// The past input.
        past: String,
        /// The other layer.
        other: usize,
    },
}
