//! Caches that several attentions read, as in Gemma 3n and Gemma 4, whose last layers reuse the keys and values of earlier
//! ones. One latent serves them all, because the rows of the cache alone define it; anything else that reads the cache would
//! find latents in place of heads.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::{Graph, NodeId};
use crate::recognize::cache::Refused;
use crate::recognize::claims::Claims;
use crate::recognize::reject::Reason;
use crate::recognize::site::Site;

/// Removes the attentions of which a cache is read by anything but attentions with the same two caches, and tells the others
/// which layer is the first that reads their caches. `beside` holds the other readers of the caches of each layer.
/// Returns the layers that were removed, each with the reason and its node.
pub fn settle(
    graph: &Graph,
    sites: &mut Vec<Site>,
    beside: &BTreeMap<usize, Vec<Refused>>,
    claims: &Claims,
) -> Vec<(usize, Refused)> {
    let readers = CacheReaders {
        graph,
        beside,
        claims,
    };
    let mut all_refused = Vec::new();
    // An attention that is refused is a stranger to those that share its caches, so they are refused together.
    while let Some((first, refused)) = sites.iter().find_map(|site| {
        let refused = readers.obstacle(site, sites)?;
        Some((site.layer, refused))
    }) {
        let layers = sharing(first, sites);
        let together = sites.iter().filter(|s| layers.contains(&s.layer));
        all_refused.extend(together.map(|site| {
            let own = readers.obstacle(site, sites);
            (site.layer, own.unwrap_or_else(|| refused.clone()))
        }));
        sites.retain(|site| !layers.contains(&site.layer));
    }
    let first_reader = |site: &Site| {
        let own = caches(site)?;
        let mut alike = sites.iter().filter(|s| caches(s) == Some(own));
        let first = alike.next()?.layer;
        (first < site.layer).then_some(first)
    };
    let shares: Vec<Option<usize>> = sites.iter().map(first_reader).collect();
    for (site, shares) in sites.iter_mut().zip(shares) {
        site.shares = shares;
    }
    all_refused
}

/// Who reads the caches of a graph.
struct CacheReaders<'r> {
    graph: &'r Graph<'r>,
    beside: &'r BTreeMap<usize, Vec<Refused>>,
    claims: &'r Claims,
}

impl CacheReaders<'_> {
    /// Why the caches of `site`, one of `sites`, cannot become latents, with the node that is in the way.
    fn obstacle(&self, site: &Site, sites: &[Site]) -> Option<Refused> {
        let own = caches(site)?;
        let others = || sites.iter().filter(|other| other.layer != site.layer);
        let sharing = others().filter(|other| shared(site, other).is_some());
        let (partners, mixed): (Vec<&Site>, Vec<&Site>) =
            sharing.partition(|other| caches(other).is_some_and(|theirs| theirs == own));
        if let Some(other) = mixed.first() {
            let reason = Reason::SharedCache {
                past: shared(site, other)?.to_owned(),
                other: other.layer,
                how: "which reads another cache beside it: one latent serves attentions that read the same keys and values",
            };
            return Some((site.score, reason));
        }
        let is_strange = |(node, _): &&Refused| !partners.iter().any(|p| self.belongs(*node, p));
        let (node, reason) = self.beside.get(&site.layer)?.iter().find(is_strange)?;
        let sides = [&site.key, &site.value];
        let pasts = sides.map(|side| side.cache.as_ref().and_then(|cache| cache.past.clone()));
        let pasts: Vec<String> = pasts.into_iter().flatten().collect();
        let reason = match self.claims.shared(&pasts) {
            Some((past, other)) => Reason::SharedCache {
                past,
                other,
                how: "which is refused and would find latents in place of heads",
            },
            None => reason.clone(),
        };
        Some((*node, reason))
    }

    /// Whether `node` is a product of `site`, or stands between its caches and these.
    fn belongs(&self, node: NodeId, site: &Site) -> bool {
        let makes = |value: &String| self.graph.producer(value).is_some_and(|(id, _)| id == node);
        let behind = |path: &[String]| path.iter().skip(1).any(makes);
        node == site.score
            || node == site.output
            || behind(&site.key.path)
            || behind(&site.value.path)
    }
}

/// The rows that `site` reads from its caches of keys and values.
fn caches(site: &Site) -> Option<[&str; 2]> {
    let (key, value) = (site.key.cache.as_ref()?, site.value.cache.as_ref()?);
    Some([&key.joined, &value.joined])
}

/// The layers of `sites` that share a cache with layer `first`, itself included, or with another such layer.
fn sharing(first: usize, sites: &[Site]) -> BTreeSet<usize> {
    let mut layers = BTreeSet::from([first]);
    loop {
        let known = sites.iter().filter(|site| layers.contains(&site.layer));
        let known: Vec<&Site> = known.collect();
        let shares = |site: &&Site| known.iter().any(|own| shared(site, own).is_some());
        let more = sites.iter().filter(shares).map(|site| site.layer);
        let before = layers.len();
        layers.extend(more.collect::<Vec<_>>());
        if layers.len() == before {
            return layers;
        }
    }
}

/// One of the rows that both attentions read from a cache.
fn shared<'s>(site: &'s Site, other: &Site) -> Option<&'s str> {
    let theirs = caches(other)?;
    caches(site)?.into_iter().find(|own| theirs.contains(own))
}
