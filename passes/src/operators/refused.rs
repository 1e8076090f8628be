//! Attention operators that cannot be expanded, with the reasons that reports show.

use crate::onnx::NodeProto;
use crate::operators::unsupported;
use crate::recognize::reject::Reason;

const OTHER_CACHE: &str = "its cache layout belongs to one runtime: export without that fusion";

/// Operators of the domain `com.microsoft` with reasons.
const TABLE: &[(&str, &str)] = &[
    (
        "PagedAttention",
        "its cache is paged and its tokens are packed, which only the CUDA provider runs: export with GroupQueryAttention, or with MatMul, Softmax, MatMul",
    ),
    (
        "SparseAttention",
        "its block-sparse layout has no latent form: export with dense attention",
    ),
    (
        "Attention",
        "it projects queries, keys and values itself, packed and with its own cache layout: export without that fusion",
    ),
    ("DecoderMaskedMultiHeadAttention", OTHER_CACHE),
    ("DecoderMaskedSelfAttention", OTHER_CACHE),
    ("PackedAttention", OTHER_CACHE),
    ("PackedMultiHeadAttention", OTHER_CACHE),
    ("MultiHeadAttentionVarlen", OTHER_CACHE),
    (
        "LinearAttention",
        "it keeps no keys and values, so there is no cache to make latent",
    ),
];

/// The reason why `node` is refused, if it is one of these operators.
pub fn reason(node: &NodeProto) -> Option<Reason> {
    let mut table = TABLE.iter().filter(|_| node.domain() == "com.microsoft");
    let (_, detail) = table.find(|(name, _)| *name == node.op_type())?;
    Some(unsupported(node, detail))
}
