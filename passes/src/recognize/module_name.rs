//! The name of the PyTorch module of an attention, from the names and metadata that exporters write.

use crate::graph::{Graph, NodeId, label};

/// The module of the node `score`: from its `name_scopes` metadata, else from the path in its name.
pub fn module_of(graph: &Graph, score: NodeId) -> String {
    let Some(node) = graph.node(score) else {
        return String::new();
    };
    let scopes = node
        .metadata_props
        .iter()
        .find(|p| p.key() == "pkg.torch.onnx.name_scopes")
        .and_then(|p| {
            p.value()
                .rsplit('\'')
                .find(|s| s.contains('.') && (s.contains("attn") || s.contains("attention")))
        });
    if let Some(scope) = scopes {
        return scope.to_owned();
    }
    let name = label(node);
    match name.rsplit_once('/') {
        Some((module, _)) if !module.is_empty() => module.trim_start_matches('/').replace('/', "."),
        _ => name.to_owned(),
    }
}
