//! The inputs and outputs of a model as its file declares them, and what an input can be for.

/// An extent in the declared type of an input or output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AxisSize {
    /// A number.
    Fixed(usize),
    /// A symbol or an expression of symbols, compared as text.
    Symbol(String),
    /// Nothing declared.
    Unknown,
}

/// An input or output of a model as its file declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The value's name.
    pub name: String,
    /// ONNX `TensorProto.DataType`.
    pub elem_type: i32,
    /// Extent of each axis.
    pub dims: Vec<AxisSize>,
}

/// What an input is for. `B` is the batch, `T` the tokens of this run, `P` those in the cache, `S` their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Token ids `[B, T]`.
    TokenIds,
    /// Embedded tokens `[B, T, E]` in place of token ids.
    InputsEmbeds,
    /// Which positions hold a token: `[B, S]`, or `[B, 1, T, S]` with causality spelled out.
    AttentionMask,
    /// Positions of the tokens, `[B, T]` or `[T]`, or `[3, B, T]` for time, height and width.
    PositionIds,
    /// Slots of the cache the tokens are written to, `[T]`.
    CachePosition,
    /// Whether there is a cache to read, in models that hold both decoders.
    UseCacheBranch,
    /// The output of an encoder, the same in every run: its states or caches, or the mask over them.
    Context,
    /// Which sequence of the last run each row goes on with, `[B]`: each with itself.
    BeamIds,
    /// Numbers that no other role tells, such as the weights of an adapter, the same in every run.
    Given,
    /// For how many of the last tokens logits are wanted.
    LogitsToKeep,
    /// The cache with this index in [`Interface::caches`].
    Past(usize),
}
