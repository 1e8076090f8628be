//! A model whose prompts are read by a branch of their own (`--new-tokens prompt`), as a model that reads every token through
//! the cache, for training: the branch of later steps in place of the `If`.

use std::collections::HashMap;

use gqa2mla_passes::graph::rename::rename;
use gqa2mla_passes::graph::{is_op, order};
use gqa2mla_passes::onnx::stored::Model;
use gqa2mla_passes::onnx::{GraphProto, NodeProto};

/// `model` without branches for prompts; `None` if it has none. The initializers have the same names.
#[must_use]
pub fn later_steps(model: &Model) -> Option<Model> {
    let main = model.proto.graph.as_ref()?;
    main.node.iter().find_map(later_branch)?;
    let mut graph = main.clone();
    graph.node = Vec::with_capacity(main.node.len());
    for node in &main.node {
        match later_branch(node) {
            Some(branch) => {
                graph.node.extend(inlined(node, branch));
                graph.initializer.extend(branch.initializer.iter().cloned());
            }
            None => graph.node.push(node.clone()),
        }
    }
    order::sort(&mut graph);
    let mut proto = model.proto.clone();
    proto.graph = Some(graph);
    Some(Model {
        proto,
        files: model.files.clone(),
    })
}

/// The branch of later steps, if `node` chooses between a prompt and them: a rewrite calls the results of a prompt
/// `<old name>/mla/prompt/<result>`.
fn later_branch(node: &NodeProto) -> Option<&GraphProto> {
    let branch = |name: &str| {
        let attribute = node.attribute.iter().find(|a| a.name() == name)?;
        attribute.g.as_ref()
    };
    let first = branch("then_branch")?.output.first()?.name();
    let of_prompt = first.contains("/mla") && first.rsplit('/').nth(1) == Some("prompt");
    branch("else_branch").filter(|_| is_op(node, "If") && of_prompt)
}

/// The nodes of `branch`, which compute the outputs of `node`.
fn inlined(node: &NodeProto, branch: &GraphProto) -> Vec<NodeProto> {
    let results = branch.output.iter().map(|output| output.name().to_owned());
    let names: HashMap<String, String> = results.zip(node.output.iter().cloned()).collect();
    let mut graph = GraphProto {
        node: branch.node.clone(),
        ..GraphProto::default()
    };
    rename(&mut graph, &names);
    graph.node
}
