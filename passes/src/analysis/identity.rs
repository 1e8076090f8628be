//! The identities of attentions and of their caches.

use std::fmt;

use crate::graph::scopes::Scope;
use crate::onnx::GraphProto;
use crate::recognize::site::Site;

/// Names one attention among those of its model. Every analysis of the model gives the attention the same name: the model's output for its key
/// cache, or the output of the score product where nothing is cached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId(String);

impl SiteId {
    /// The id that `text` spells, as reports and statistics keep it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for SiteId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Identifies one cache, seen from every branch of an `If`: branches that make the same output of the `If` fill one cache.
///
/// It is the outermost graph that names the cache, and its name there. An attention without a cache has an identity of
/// its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheId {
    /// The outermost graph that gives the cache a name.
    pub scope: Scope,
    /// The value's name in that graph.
    pub value: String,
}

impl CacheId {
    /// The identity of the cache of `site`, which stands at `scope` of `main`.
    pub fn of(main: &GraphProto, scope: &Scope, site: &Site) -> Self {
        match &site.key.cache {
            Some(cache) => Self::outermost(main, scope, cache.present()),
            None => Self {
                scope: scope.clone(),
                value: scope
                    .get(main)
                    .and_then(|g| g.node.get(site.score.0)?.output.first().cloned())
                    .unwrap_or_default(),
            },
        }
    }

    /// Follows `value`, a value of the graph at `scope`, out through the outputs of the nodes around it.
    pub fn outermost(main: &GraphProto, scope: &Scope, value: &str) -> Self {
        let mut found = Self {
            scope: scope.clone(),
            value: value.to_owned(),
        };
        while let Some((around, step)) = found.scope.around() {
            let output = || {
                let graph = found.scope.get(main)?;
                let position = graph.output.iter().position(|o| o.name() == found.value)?;
                around.get(main)?.node.get(step.node)?.output.get(position)
            };
            let Some(outside) = output().cloned() else {
                break;
            };
            found = Self {
                scope: around,
                value: outside,
            };
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::CacheId;
    use crate::graph::build::node;
    use crate::graph::scopes::{Scope, ScopeStep};
    use crate::onnx::{AttributeProto, GraphProto, NodeProto, ValueInfoProto};

    fn value(name: &str) -> ValueInfoProto {
        ValueInfoProto {
            name: Some(name.to_owned()),
            ..ValueInfoProto::default()
        }
    }

    fn branch(output: &str) -> AttributeProto {
        AttributeProto {
            g: Some(GraphProto {
                output: vec![value(output)],
                ..GraphProto::default()
            }),
            ..AttributeProto::default()
        }
    }

    #[test]
    fn both_branches_of_an_if_fill_one_cache_whatever_they_call_it() {
        let choice = NodeProto {
            attribute: vec![branch("then/present"), branch("else/present")],
            ..node("If", "choice", &["use_cache"], &["present.0.key"])
        };
        let main = GraphProto {
            node: vec![choice],
            ..GraphProto::default()
        };
        let seen = |attribute: usize, name: &str| {
            let scope = Scope(vec![ScopeStep { node: 0, attribute }]);
            CacheId::outermost(&main, &scope, name)
        };
        assert_eq!(seen(0, "then/present"), seen(1, "else/present"));
        assert_eq!(seen(0, "then/present").value, "present.0.key");
        assert_ne!(seen(0, "then/other"), seen(1, "else/other"));
    }
}
