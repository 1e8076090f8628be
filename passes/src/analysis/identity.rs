//! Identifiers of attentions and of their caches.

use std::fmt;

use crate::graph::scopes::Scope;
use crate::onnx::GraphProto;
use crate::recognize::site::Site;

/// The unique name of an attention in its model, the same in every analysis of the model: the name of the graph output
/// for its key cache, or of the output of the score product if nothing is cached. Attentions that read one cache have one
/// name, because they have one latent.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SiteId(String);

impl SiteId {
    /// The id with the text `text`, as reports and statistics files store it.
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

/// Identifies one cache across the branches of an `If`: branches that compute the same output of the `If` fill the same
/// cache.
///
/// The id consists of the outermost graph in which the cache has a name, and that name. For an attention without a
/// cache it is its scope and the output of its score product.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheId {
    /// The outermost graph in which the cache has a name.
    pub scope: Scope,
    /// The name of the cache in that graph.
    pub value: String,
}

impl CacheId {
    /// The id of the key cache of `site`, an attention of the graph at `scope` of `main`.
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

    /// Follows `value`, a value of the graph at `scope`, through the outputs of the enclosing nodes as far as possible.
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
