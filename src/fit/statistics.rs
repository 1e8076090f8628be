//! The statistics of a whole model.

use std::collections::BTreeMap;

use gqa2mla_passes::analysis::identity::SiteId;
use gqa2mla_passes::factor::Statistics;

/// The statistics of a whole model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelStatistics {
    /// Identity of the model, see [`crate::files::identity`].
    pub model: String,
    /// Checksum of the calibration text.
    pub text: String,
    /// Number of sequences summed up so far.
    pub sequences: usize,
    /// Number of tokens per sequence.
    pub length: usize,
    /// The statistics of each attention, by [`gqa2mla_passes::analysis::observe::ObservedLayer::id`].
    pub layers: BTreeMap<SiteId, Statistics>,
}

impl ModelStatistics {
    /// Whether these are partial sums of the same model and text as the empty statistics `fresh`.
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
