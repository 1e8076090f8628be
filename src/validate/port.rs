//! Declared inputs and outputs of a model, and the roles of inputs.

/// The declared size of an axis of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AxisSize {
    /// A constant.
    Fixed(usize),
    /// A symbol or an expression, compared as text.
    Symbol(String),
    /// No declared size.
    Unknown,
}

/// A declared input or output of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The value's name.
    pub name: String,
    /// ONNX `TensorProto.DataType`.
    pub elem_type: i32,
    /// Size of each axis.
    pub dims: Vec<AxisSize>,
}

/// The role of an input. `B` batch, `T` new tokens, `P` past tokens, `S` = `P` + `T`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Token ids `[B, T]`.
    TokenIds,
    /// Embedded tokens `[B, T, E]` instead of token ids.
    InputsEmbeds,
    /// Attention mask: `[B, S]`, or `[B, 1, T, S]` with a causal mask.
    AttentionMask,
    /// Positions of the tokens, `[B, T]` or `[T]`, or `[3, B, T]` for time, height and width.
    PositionIds,
    /// Indices of the cache slots of the new tokens, `[T]`.
    CachePosition,
    /// The row of a static cache that the first new token of each sequence is written to, `[B]`.
    WriteIndices,
    /// The number of rows of a static cache that hold a token, those of the new tokens included, `[B]`.
    WrittenRows,
    /// The number of past tokens, in one number or one for each row.
    PastLength,
    /// The number of tokens, past and new, in one number or one for each row.
    TotalLength,
    /// The cache slot of the last new token of each row, as `seqlens_k` of `GroupQueryAttention`.
    LastSlot,
    /// Whether there is a past, in models with merged decoders.
    UseCacheBranch,
    /// Encoder states, their caches, or their mask: the same in every run.
    Context,
    /// Beam indices `[B]`: the row of the last run that each row continues, here the same row.
    BeamIds,
    /// Floats without another role, such as the weights of an adapter: the same in every run.
    Given,
    /// Number of last tokens for which logits are returned.
    LogitsToKeep,
    /// The cache with this index in [`crate::validate::interface::Interface::caches`].
    Past(usize),
}
