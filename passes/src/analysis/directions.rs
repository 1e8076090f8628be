//! The rank of the cached rows of each attention: the dimension of the subspace that they span, where the graph proves
//! that it is smaller than the number of their channels.

use std::collections::HashMap;

use crate::analysis::identity::CacheId;
use crate::analysis::placed::PlacedSite;
use crate::facts::scoped::Scoped;
use crate::recognize::site::Side;
use crate::weights::channels::Channels;

/// The channels of keys and of values of `placed`, which stands in the graph of `scoped`.
fn channels(scoped: &Scoped, placed: &PlacedSite) -> [Channels; 2] {
    let site = &placed.site;
    let of = |side: &Side| {
        let (groups, elem_type) = (site.kv_heads, site.elem_type);
        Channels::of(scoped.graph, scoped.facts, side, groups, elem_type)
    };
    [of(&site.key), of(&site.value)]
}

/// The channels of each cache, as far as all its sites agree on them.
#[derive(Default)]
pub struct Directions {
    of: HashMap<CacheId, [Option<Channels>; 2]>,
}

impl Directions {
    /// Adds `sites`, which are in the graph of `scoped`. Branches that fill the same cache share its factors, so that a
    /// channel relation counts only if all of them have it.
    pub fn look(&mut self, scoped: &Scoped, sites: &[PlacedSite]) {
        for placed in sites {
            let own = channels(scoped, placed);
            match self.of.get_mut(&placed.cache) {
                None => {
                    self.of.insert(placed.cache.clone(), own.map(Some));
                }
                Some(known) => {
                    for (known, own) in known.iter_mut().zip(&own) {
                        known.take_if(|known| !known.is_copies_of(own));
                    }
                }
            }
        }
    }

    /// Sets the lossless rank of each side of `sites`, and the reason why it is below the number of channels.
    pub fn tell(&self, sites: &mut [PlacedSite]) {
        for placed in sites {
            let Some(known) = self.of.get(&placed.cache) else {
                continue;
            };
            let site = &mut placed.site;
            for (side, known) in [&mut site.key, &mut site.value].into_iter().zip(known) {
                if let Some(channels) = known {
                    side.rank = channels.rank();
                    side.fewer = channels.fewer();
                }
            }
        }
    }
}
