//! What a model holds, over all of its graphs: attentions, where they stand, and what they are made of.

pub mod layer;
pub mod observe;
pub mod placed;
pub mod understand;
