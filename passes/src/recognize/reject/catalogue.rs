//! The code and the advice of each reason, as in docs/reasons.md.

use crate::recognize::reject::Reason;

impl Reason {
    /// Short stable name, used in the catalogue and in JSON.
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
            Self::Quantized { .. } => "quantized-products",
            Self::AlreadyLatent { .. } => "already-latent",
            Self::OperandShape { .. } => "operand-shape",
            Self::UnknownShape { .. } => "unknown-shape",
            Self::ValueProducts { .. } => "value-products",
            Self::ScoreProducts { .. } => "score-products",
            Self::ShapeReader { .. } => "shape-reader",
            Self::UnsupportedOperator { .. } => "unsupported-operator",
            Self::OtherBranch { .. } => "other-branch",
            Self::SharedCache { .. } => "shared-cache",
            Self::Rearranged { .. } => "scores-rearranged",
            Self::UnknownReader { .. } => "unknown-reader",
            Self::CrossedCaches { .. } => "crossed-caches",
            Self::OtherForm { .. } => "other-form",
        }
    }

    /// What the user can do about it, as in docs/reasons.md.
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
            Self::SecondReader { .. } => {
                "remove the other reader from the export, or leave this layer with --allow-partial"
            }
            Self::SharedCache { .. } => {
                "leave the layers that share the cache with --allow-partial, or export the other layer with both caches of this one, or with two of its own"
            }
            Self::OutputInside { .. } => "do not name inner values as outputs of the export",
            Self::RepeatsDiffer { .. } => {
                "nothing: one latent for keys and values needs the same KV heads on both sides"
            }
            Self::CacheAxis { .. } | Self::CacheForm { .. } => {
                "export with a cache that grows by Concat along axis 2 of [batch, kv_heads, length, head_size], as transformers' DynamicCache does, or with a static one that TensorScatter writes along the same axis: not a sliding or paged one. With --cache-io inplace, the rewritten model writes a growing cache into a buffer"
            }
            Self::CacheNotReturned { .. } => {
                "name the concatenated key and value as outputs of the export"
            }
            Self::HalfCached => "export with both key and value as past inputs, or with neither",
            Self::CrossAttention { .. } => {
                "nothing: only caches that grow with the text are made latent"
            }
            Self::ChangedAfterCaching { .. } => {
                "export a model that caches what the product reads, keys after rotation, as transformers does"
            }
            Self::Quantized { .. } => {
                "quantize products with weights only: MatMulConstBOnly=True in the extra_options of ONNX Runtime's quantization, or nodes_to_exclude"
            }
            Self::AlreadyLatent { .. } => "nothing: the model is what a rewrite would make of it",
            Self::OperandShape { .. } => {
                "export with a constant number of heads and a constant head size, as [batch, heads, length, head_size]"
            }
            Self::UnknownShape { .. } => {
                "declare the shape of that value: python -m onnxruntime.tools.symbolic_shape_infer writes the shapes of inner values into the model"
            }
            Self::ValueProducts { .. } | Self::ScoreProducts { .. } => {
                "export with one product of queries and keys, one softmax and one product with the values in each attention"
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
            Self::OtherForm { .. } => {
                "rewrite with the form or the option that the reason names, or leave this layer as it is"
            }
            Self::OtherBranch { .. } => "look at the reason given for the other branch",
        }
    }

    /// Whether the subgraph is of a kind that is never rewritten (cross-attention), as opposed to one that could not be
    /// proved.
    pub fn is_not_a_site(&self) -> bool {
        matches!(self, Self::CrossAttention { .. })
    }
}
