//! The statistics of a whole model.

use std::collections::BTreeMap;

use gqa2mla_passes::analysis::identity::SiteId;
use gqa2mla_passes::factor::Statistics;

/// The statistics of a whole model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelStatistics {
    /// The model they belong to, see [`crate::files::identity`].
    pub model: String,
    /// Checksum of the text they were made from.
    pub text: String,
    /// Sequences that have been read.
    pub sequences: usize,
    /// Tokens of one sequence.
    pub length: usize,
    /// By attention, as [`gqa2mla_passes::analysis::observe::ObservedLayer::id`] names them.
    pub layers: BTreeMap<SiteId, Statistics>,
}

impl ModelStatistics {
    /// Whether these sums are an earlier state of `fresh`, which has none yet.
    #[must_use]
    pub fn continues(&self, fresh: &Self) -> bool {
        let same = |(id, sums): (&SiteId, &Statistics)| {
            self.layers
                .get(id)
                .is_some_and(|s| s.key_square.dim() == sums.key_square.dim())
        };
        self.model == fresh.model
            && self.text == fresh.text
            && self.length == fresh.length
            && self.layers.len() == fresh.layers.len()
            && fresh.layers.iter().all(same)
    }
}
