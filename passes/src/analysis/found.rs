//! What the recogniser found in one graph, with its place in the model.

use std::collections::BTreeMap;

use crate::analysis::placed::PlacedSite;
use crate::facts::scoped::Scoped;
use crate::graph::functions::{Key, called};
use crate::graph::scopes::Body;
use crate::graph::{Graph, label};
use crate::onnx::{GraphProto, NodeProto};
use crate::operators::Lowered;
use crate::recognize::Recognized;
use crate::recognize::reject::{Reason, Reject};

/// The sites of one graph with their scopes, and rejects for those whose cache is carried by a loop.
pub fn placed(
    main: &GraphProto,
    scoped: &Scoped,
    lowered: &Lowered,
    found: &Recognized,
) -> (Vec<PlacedSite>, Vec<Reject>) {
    let (mut kept, mut rejects) = (Vec::new(), Vec::new());
    for site in &found.sites {
        let score = scoped.graph.node(site.score);
        if scoped.body == Body::Iterated && site.is_cached() {
            rejects.push(Reject {
                layer: site.layer,
                within: None,
                node: score.map_or_else(String::new, |n| label(n).to_owned()),
                reason: Reason::UnsupportedOperator {
                    op: "Loop".to_owned(),
                    detail: "the attention's cache is carried from one iteration to the next"
                        .to_owned(),
                },
            });
            continue;
        }
        let score = score.and_then(|n| n.output.first());
        let origin = score.and_then(|s| lowered.origins.get(s)).cloned();
        let mut site = site.clone();
        site.within = scoped.scope.describe(main);
        if let Some(origin) = &origin {
            site.dialect = origin.dialect;
        }
        let mut one = PlacedSite::new(main, scoped.scope, site, origin);
        one.reader = kept
            .iter()
            .filter(|known: &&PlacedSite| known.cache == one.cache)
            .count();
        kept.push(one);
    }
    (kept, rejects)
}

/// Rejects for the calls of the functions `kept`, which contain attention and cannot be inlined, each with its reason.
/// `first` is the layer number of the first one.
pub fn calls_of(graph: &Graph, kept: &BTreeMap<Key, String>, first: usize) -> Vec<Reject> {
    let calls = graph.nodes().map(|(_, node)| node);
    let calls = calls.filter_map(|node| Some((node, kept.get(&called(node))?)));
    let reject = |(position, (node, detail)): (usize, (&NodeProto, &String))| Reject {
        layer: first + position,
        within: None,
        node: label(node).to_owned(),
        reason: Reason::UnsupportedOperator {
            op: format!("{}.{}", node.domain(), node.op_type()),
            detail: detail.clone(),
        },
    };
    calls.enumerate().map(reject).collect()
}

/// Gives attentions that are refused for the order of their caches another reason, if they would be refused in the usual order
/// for a second reader: that reader.
pub fn tell_what_else(rejects: &mut [Reject], ordered: &[Reject]) {
    let is_read = |other: &&Reject| matches!(other.reason, Reason::SecondReader { .. });
    for reject in rejects {
        let place = (reject.layer, &reject.within);
        let mut others = ordered.iter().filter(is_read);
        let other = others.find(|other| (other.layer, &other.within) == place);
        if let (Reason::CacheAxis { .. }, Some(other)) = (&reject.reason, other) {
            *reject = other.clone();
        }
    }
}
