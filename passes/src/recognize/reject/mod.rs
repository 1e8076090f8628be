//! Reasons why an attention was not recognised: what was expected and what was found.

mod catalogue;

use std::fmt;

/// An attention-like subgraph that is not rewritten, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// The layer number that the attention would have: attentions are numbered from 0 in graph order, and those in the
    /// branches of an `If` have the same number.
    pub layer: usize,
    /// The branch or loop body that holds the node, such as `then_branch of If 'merged'`; `None` in the main graph.
    pub within: Option<String>,
    /// The node at which the proof failed.
    pub node: String,
    /// What was expected there and what was found.
    pub reason: Reason,
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let within = self.within.as_ref();
        let within = within.map_or_else(String::new, |w| format!(" in {w}"));
        write!(
            f,
            "layer {}{within}: {} (node '{}')",
            self.layer, self.reason, self.node
        )
    }
}

/// Which operand of the attention a reason speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

/// Why an attention was not recognised. docs/reasons.md has a row for each [`Reason::code`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// Repetition as by `Tile`: query head `h` reads KV head `h mod G`.
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
    /// The layout of the operand is not repeat_kv of the cache.
    #[error("the {operand} reaches the product as {found}, expected {expected}")]
    OtherLayout {
        /// Key or value.
        operand: Operand,
        /// The layout that was found, as [`crate::recognize::digits::DigitMap::describe`] writes it.
        found: String,
        /// The layout of repeat_kv.
        expected: String,
    },
    /// An operator between cache and product whose layout map is unknown.
    #[error(
        "the {operand} passes {op} between the cache and the product, whose effect on the heads cannot be proved: {detail}"
    )]
    Opaque {
        /// Key or value.
        operand: Operand,
        /// Operator type.
        op: String,
        /// Why its map is unknown.
        detail: String,
    },
    /// A `Gather` picks heads in an order that is not repeat_kv.
    #[error(
        "the {operand}'s heads are picked in the order {order:?}, which is no repetition of each head in turn"
    )]
    PermutedHeads {
        /// Key or value.
        operand: Operand,
        /// The indices of the `Gather`.
        order: Vec<i64>,
    },
    /// A `Slice` reads only part of the cached keys or values.
    #[error("only a part of the {operand} is read (axis {axis}), expected all of it")]
    PartialRead {
        /// Key or value.
        operand: Operand,
        /// Axis of the value that is sliced.
        axis: usize,
    },
    /// The operand is multiplied by a scale that is computed at run time.
    #[error(
        "the {operand} is multiplied by '{scale}', a scale that is not constant, expected a constant scalar"
    )]
    ScaleNotConstant {
        /// Key or value.
        operand: Operand,
        /// The value that scales.
        scale: String,
    },
    /// The operand is multiplied by a constant whose elements differ.
    #[error(
        "the {operand} is multiplied by '{scale}', a constant that differs from element to element, expected one scalar"
    )]
    ScaleVaries {
        /// Key or value.
        operand: Operand,
        /// The value that scales.
        scale: String,
    },
    /// Another node reads the cache or the repeated keys or values.
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
    /// A value between cache and product is a graph output.
    #[error(
        "'{value}' on the way from the {operand} cache to the product is an output of the graph, which a latent cache could not serve"
    )]
    OutputInside {
        /// Key or value.
        operand: Operand,
        /// The output.
        value: String,
    },
    /// Keys and values have different numbers of KV heads.
    #[error(
        "keys and values are repeated by different factors: {key} KV heads for the keys, {value} for the values"
    )]
    RepeatsDiffer {
        /// G of the keys.
        key: i64,
        /// G of the values.
        value: i64,
    },
    /// The cache does not grow along axis 2.
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
    /// The present (the past with the new rows appended) is not a graph output.
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
    /// Only one of keys and values is cached.
    #[error("the key and the value are not cached alike: one has a past input, the other has none")]
    HalfCached,
    /// Keys and values come from another sequence than the queries.
    #[error(
        "the {operand} '{value}' has another length than the query and no cache of this graph feeds it: cross-attention, which caches nothing that grows"
    )]
    CrossAttention {
        /// Key or value.
        operand: Operand,
        /// The first value that is not computed by layout operators.
        value: String,
    },
    /// The cache is written by other operators than `Concat(past, new)`.
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
    /// The cached keys or values are changed (rotated, normalized) between cache and product.
    #[error(
        "the {operand} cache '{past}' is changed by {op} after it is read, expected {operand}s that are cached as the product reads them{}", after_rotation(.operand)
    )]
    ChangedAfterCaching {
        /// Key or value.
        operand: Operand,
        /// The past input.
        past: String,
        /// The operator that changes them.
        op: String,
    },
    /// The products of the attention are products of integers.
    #[error(
        "the {operand} is rounded to integers in front of the product, by {op}: a latent cache would be rounded to other ones"
    )]
    Quantized {
        /// Key or value.
        operand: Operand,
        /// The operator.
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
    /// An operand whose shape or type is not the expected one.
    #[error("the {operand} '{value}' has shape {found}, expected {expected}")]
    OperandShape {
        /// Query, key or value.
        operand: Operand,
        /// Name of the value.
        value: String,
        /// Its shape.
        found: String,
        /// The expected shape or type.
        expected: String,
    },
    /// An operand whose shape is not known.
    #[error("the shape of the {operand} '{value}' cannot be inferred: {cause}")]
    UnknownShape {
        /// Query, key, value or probabilities.
        operand: Operand,
        /// Name of the value.
        value: String,
        /// The node or the graph input at which the shape is lost.
        cause: String,
    },
    /// The probabilities are multiplied with several operands, or from the right.
    #[error("{}, expected one product of probabilities and values", products(*.count))]
    ValueProducts {
        /// How many have the probabilities on their left.
        count: usize,
    },
    /// Several products make the scores, or the probabilities.
    #[error(
        "the probabilities are made of {count} products of queries and keys, expected one such product in front of one softmax"
    )]
    ScoreProducts {
        /// How many.
        count: usize,
    },
    /// A node reads the shape of a value that the rewrite removes, and the shape cannot be computed from the latent
    /// cache.
    #[error(
        "the shape of '{value}' is needed by '{reader}' and cannot be told from the latent cache"
    )]
    ShapeReader {
        /// The value that the rewrite removes.
        value: String,
        /// The `Shape` node.
        reader: String,
    },
    /// An operator that cannot be rewritten.
    #[error("operator {op} is not rewritten: {detail}")]
    UnsupportedOperator {
        /// Operator type.
        op: String,
        /// Why.
        detail: String,
    },
    /// Only one branch of an `If` computes the cache by a recognised attention.
    #[error(
        "the cache output '{present}' of If '{node}' is made by both branches, and only one of them was recognised"
    )]
    OtherBranch {
        /// The output of the `If`.
        present: String,
        /// The `If`.
        node: String,
    },
    /// An operator between a product and the softmax rearranges elements.
    #[error(
        "the {what} pass {op} between the product and the softmax, expected them as [batch, heads, queries, keys] all the way"
    )]
    Rearranged {
        /// Scores or probabilities.
        what: &'static str,
        /// The operator.
        op: String,
    },
    /// A growing cache belongs to no attention.
    #[error(
        "the cache '{past}' grows here and is read by {reader}, and no attention of a known form reads it: expected a product of queries and keys, a softmax, and a product with the values"
    )]
    UnknownReader {
        /// The past input.
        past: String,
        /// Operator type of the node that reads the present.
        reader: String,
    },
    /// The present of a cache is named after another cache, or branches return different caches as the same output.
    #[error(
        "the cache that goes in as '{past}' comes out as '{present}', which continues another one"
    )]
    CrossedCaches {
        /// The past input.
        past: String,
        /// The output.
        present: String,
    },
    /// Another attention reads one of the caches, and both cannot read one latent.
    #[error("the cache '{past}' also serves layer {other}, {how}")]
    SharedCache {
        /// The past input, or the rows that both read.
        past: String,
        /// The other layer.
        other: usize,
        /// Why the other layer cannot read the latent.
        how: &'static str,
    },
    /// The attention was recognised, and cannot be rewritten to the form.
    #[error("it cannot take the form {form}: {cause}")]
    OtherForm {
        /// The form.
        form: String,
        /// The reason, and what the user can do.
        cause: String,
    },
}

/// What the probabilities meet.
fn products(count: usize) -> String {
    match count {
        0 => "the probabilities are the right operand of a product".to_owned(),
        _ => format!("the probabilities are the left operand of {count} products"),
    }
}

/// What keys go through before they are cached, and values do not.
fn after_rotation(operand: &Operand) -> &'static str {
    match operand {
        Operand::Key => " (after rotation)",
        _ => "",
    }
}
