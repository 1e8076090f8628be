//! What docs/reasons.md says of each reason: its name, and what to do.

use crate::recognize::reject::Reason;

impl Reason {
    /// Short stable name, for the catalogue and for JSON.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InterleavedHeads { .. } => "interleaved-heads",
            Self::OtherLayout { .. } => "other-layout",
            Self::Opaque { .. } => "opaque-operator",
            Self::PermutedHeads { .. } => "permuted-heads",
            Self::PartialRead { .. } => "partial-read",
            Self::ScaleNotConstant { .. } => "scale-not-constant",
            Self::ScaleVaries { .. } => "scale-varies",
            Self::SecondReader { .. } => "second-reader",
            Self::OutputInside { .. } => "output-inside",
            Self::RepeatsDiffer { .. } => "repeats-differ",
            Self::CacheAxis { .. } => "cache-axis",
            Self::CacheNotReturned { .. } => "cache-not-returned",
            Self::HalfCached => "half-cached",
            Self::CrossAttention { .. } => "cross-attention",
            Self::CacheForm { .. } => "cache-form",
            Self::ChangedAfterCaching { .. } => "changed-after-caching",
            Self::AlreadyLatent { .. } => "already-latent",
            Self::OperandShape { .. } => "operand-shape",
            Self::ValueProducts { .. } => "value-products",
            Self::ScoreProducts { .. } => "score-products",
            Self::ShapeReader { .. } => "shape-reader",
            Self::UnsupportedOperator { .. } => "unsupported-operator",
            Self::OtherBranch { .. } => "other-branch",
            Self::SharedCache { .. } => "shared-cache",
            Self::Rearranged { .. } => "scores-rearranged",
            Self::UnknownReader { .. } => "unknown-reader",
            Self::CrossedCaches { .. } => "crossed-caches",
        }
    }

    /// What the user can do about it. docs/reasons.md says the same.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::InterleavedHeads { .. } => {
                "permute the query heads (and the rows of o_proj) before the export, so that heads of one group are neighbours"
            }
            Self::OtherLayout { .. } | Self::PermutedHeads { .. } | Self::Opaque { .. } => {
                "export with the model's plain sdpa or eager attention, whose repetition is Unsqueeze, Expand, Reshape"
            }
            Self::PartialRead { .. } => {
                "export without cutting the cache; a mask hides positions just as well"
            }
            Self::ScaleNotConstant { .. } | Self::ScaleVaries { .. } => {
                "scale the queries in place of the keys: what happens to queries is left alone"
            }
            Self::SecondReader { .. } | Self::SharedCache { .. } => {
                "remove the other reader from the export, or leave this layer with --allow-partial"
            }
            Self::OutputInside { .. } => "do not name inner values as outputs of the export",
            Self::RepeatsDiffer { .. } => {
                "nothing: one latent for keys and values needs the same KV heads on both sides"
            }
            Self::CacheAxis { .. } | Self::CacheForm { .. } => {
                "export with a cache that grows by Concat along axis 2 of [batch, kv_heads, length, head_size]"
            }
            Self::CacheNotReturned { .. } => {
                "name the concatenated key and value as outputs of the export"
            }
            Self::HalfCached => "export with both key and value as past inputs, or with neither",
            Self::CrossAttention { .. } => {
                "nothing: only caches that grow with the text are made latent"
            }
            Self::ChangedAfterCaching { .. } => {
                "export a model that caches keys after rotation, as transformers does"
            }
            Self::AlreadyLatent { .. } => "nothing: the model is what a rewrite would make of it",
            Self::OperandShape { .. } => {
                "export with a constant number of heads and a constant head size, as [batch, heads, length, head_size]"
            }
            Self::ValueProducts { .. } | Self::ScoreProducts { .. } => {
                "export with one product of queries and keys and one with the values in each attention"
            }
            Self::ShapeReader { .. } => "export with masks that take their length from the inputs",
            Self::UnsupportedOperator { .. } => {
                "export with another attention implementation, or without that fusion"
            }
            Self::Rearranged { .. } | Self::UnknownReader { .. } => {
                "export with plain MatMul, Softmax, MatMul on four axes, and without the runtime's own graph optimizations"
            }
            Self::CrossedCaches { .. } => {
                "let each past input come back under its own output, in every branch"
            }
            Self::OtherBranch { .. } => "look at the reason given for the other branch",
        }
    }

    /// Whether this is no attention of the kind at all, rather than one that could not be proved.
    pub fn is_not_a_site(&self) -> bool {
        matches!(self, Self::CrossAttention { .. })
    }
}
