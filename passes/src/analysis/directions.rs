//! How many directions the cached rows of each attention take: fewer than they have channels where the graph shows it.

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

/// What the sites of all graphs that were looked at have shown of each cache.
#[derive(Default)]
pub struct Directions {
    of: HashMap<CacheId, [Option<Channels>; 2]>,
}

impl Directions {
    /// Looks at `sites`, which stand in the graph of `scoped`. Branches fill one cache with the same factors, so that what
    /// one of them shows holds only where the others show it as well.
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

    /// Writes the lossless rank of each cache, and why it is lower than the full one, into its sites.
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
