//! A model whose prompts are read by a branch of their own, as a model that reads every token through the cache, for training: the
//! branch of later steps in place of the `If`. Rewrites with `--new-tokens prompt` have such branches, and merged decoders,
//! which are told by an input whether there is a past.

use std::collections::{HashMap, HashSet};

use gqa2mla_passes::graph::rename::rename;
use gqa2mla_passes::graph::{captured, is_op, order};
use gqa2mla_passes::onnx::stored::Model;
use gqa2mla_passes::onnx::{GraphProto, NodeProto};

use crate::validate::roles::tells_a_past;

/// `model` without branches for prompts; `None` if it has none. The initializers have the same names.
#[must_use]
pub fn later_steps(model: &Model) -> Option<Model> {
    let main = model.proto.graph.as_ref()?;
    main.node.iter().find_map(|node| later_branch(main, node))?;
    let mut graph = main.clone();
    graph.node = Vec::with_capacity(main.node.len());
    take(&mut graph, main, main.node.clone());
    order::sort(&mut graph);
    let mut proto = model.proto.clone();
    proto.graph = Some(graph);
    Some(Model {
        proto,
        files: model.files.clone(),
    })
}

/// Adds `nodes` to `graph`, the branches of later steps in place of the choices. `main` is the graph with the choices.
fn take(graph: &mut GraphProto, main: &GraphProto, nodes: Vec<NodeProto>) {
    for node in nodes {
        match later_branch(main, &node) {
            Some(branch) => {
                graph.initializer.extend(branch.initializer.iter().cloned());
                graph.value_info.extend(branch.value_info.iter().cloned());
                take(graph, main, inlined(&node, branch));
            }
            None => graph.node.push(node),
        }
    }
}

/// The branch of later steps, if `node` chooses between a prompt and them: a rewrite calls the results of a prompt
/// `<old name>/mla/prompt/<result>`, and an input of a merged decoder chooses the branch that reads a past.
fn later_branch<'n>(main: &GraphProto, node: &'n NodeProto) -> Option<&'n GraphProto> {
    let branch = |name: &str| {
        let attribute = node.attribute.iter().find(|a| a.name() == name)?;
        attribute.g.as_ref()
    };
    if !is_op(node, "If") {
        return None;
    }
    let condition = node.input.first()?;
    let is_input = main.input.iter().any(|input| input.name() == condition);
    if is_input && tells_a_past(&condition.to_lowercase()) {
        let (past, none) = (branch("then_branch")?, branch("else_branch")?);
        return reads_all_inputs_of(past, none, main).then_some(past);
    }
    let first = branch("then_branch")?.output.first()?.name();
    let of_prompt = first.contains("/mla") && first.rsplit('/').nth(1) == Some("prompt");
    branch("else_branch").filter(|_| of_prompt)
}

/// Whether `past` reads every input of `main` that `none` reads. If not, as in an encoder-decoder whose cross-attention reads the
/// encoder without a past, and its cache with one, it does not compute the same without a past.
fn reads_all_inputs_of(past: &GraphProto, none: &GraphProto, main: &GraphProto) -> bool {
    let read: HashSet<&str> = captured(past).into_iter().collect();
    let inputs: HashSet<&str> = main.input.iter().map(|input| input.name()).collect();
    let mut needed = captured(none)
        .into_iter()
        .filter(|name| inputs.contains(name));
    needed.all(|name| read.contains(name))
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
