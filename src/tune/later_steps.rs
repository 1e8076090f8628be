//! A model whose prompts are read by a branch of their own, as a model that reads every token through the cache, for training: the
//! branch of later steps in place of the `If`. Rewrites with `--new-tokens prompt` have such branches, and merged decoders,
//! which are told by an input whether there is a past.

use std::collections::{HashMap, HashSet};

use gqa2mla_passes::graph::rename::rename;
use gqa2mla_passes::graph::{attribute, captured, is_op, order};
use gqa2mla_passes::onnx::stored::Model;
use gqa2mla_passes::onnx::{GraphProto, NodeProto};

use crate::tune::select::is_factor;
use crate::validate::roles::tells_a_past;

/// `model` without branches for prompts; `None` if it has none. The initializers have the same names.
#[must_use]
pub fn later_steps(model: &Model) -> Option<Model> {
    with_one_branch(model, later_branch)
}

/// The merged decoder `model` with its branch without a past alone; `None` for other models.
#[must_use]
pub fn without_a_past(model: &Model) -> Option<Model> {
    with_one_branch(model, |main, node| merged(main, node).map(|[_, none]| none))
}

/// The branch of a node that stands in its place, if it chooses between branches.
type Choose = for<'n> fn(&GraphProto, &'n NodeProto) -> Option<&'n GraphProto>;

fn with_one_branch(model: &Model, choose: Choose) -> Option<Model> {
    let main = model.proto.graph.as_ref()?;
    main.node.iter().find_map(|node| choose(main, node))?;
    let mut graph = main.clone();
    graph.node = Vec::with_capacity(main.node.len());
    take(&mut graph, main, main.node.clone(), choose);
    order::sort(&mut graph);
    let mut proto = model.proto.clone();
    proto.graph = Some(graph);
    Some(Model {
        proto,
        files: model.files.clone(),
    })
}

/// Adds `nodes` to `graph`, branches in place of the choices. `main` is the graph with the choices.
fn take(graph: &mut GraphProto, main: &GraphProto, nodes: Vec<NodeProto>, choose: Choose) {
    for node in nodes {
        match choose(main, &node) {
            Some(branch) => {
                graph.initializer.extend(branch.initializer.iter().cloned());
                graph.value_info.extend(branch.value_info.iter().cloned());
                take(graph, main, inlined(&node, branch), choose);
            }
            None => graph.node.push(node),
        }
    }
}

/// Those of the initializers `names` of `model` that training may change: not those that are in a branch themselves, and of a
/// merged decoder only weights that both branches read, so that the branches stay one model. The factors of a rewrite are made
/// for both.
#[must_use]
pub fn of_all_steps(model: &Model, mut names: Vec<String>) -> Vec<String> {
    let Some(main) = &model.proto.graph else {
        return names;
    };
    let stored: HashSet<&str> = main.initializer.iter().map(|t| t.name()).collect();
    let merged = main.node.iter().filter_map(|node| merged(main, node));
    let read: Vec<[HashSet<&str>; 2]> = merged
        .map(|branches| branches.map(|branch| captured(branch).into_iter().collect()))
        .collect();
    let in_both = |name: &str| {
        read.iter()
            .all(|[past, none]| past.contains(name) == none.contains(name))
    };
    names.retain(|name| stored.contains(&**name) && (is_factor(name) || in_both(name)));
    names
}

/// The branches with and without a past, if `node` chooses between them in a merged decoder.
fn merged<'n>(main: &GraphProto, node: &'n NodeProto) -> Option<[&'n GraphProto; 2]> {
    let condition = node.input.first()?;
    let is_input = main.input.iter().any(|input| input.name() == condition);
    let chooses = is_op(node, "If") && is_input && tells_a_past(&condition.to_lowercase());
    let [past, none] = ["then_branch", "else_branch"].map(|name| branch(node, name));
    Some([past.filter(|_| chooses)?, none?])
}

fn branch<'n>(node: &'n NodeProto, name: &str) -> Option<&'n GraphProto> {
    attribute(node, name)?.g.as_ref()
}

/// The branch of later steps of several tokens, if `node` chooses between them and others: a rewrite calls the results of a prompt
/// `<old name>/mla/prompt/<result>` and those of one later token `<old name>/mla/step/<result>`, and an input of a merged decoder
/// chooses the branch that reads a past.
fn later_branch<'n>(main: &GraphProto, node: &'n NodeProto) -> Option<&'n GraphProto> {
    if let Some([past, none]) = merged(main, node) {
        return reads_all_inputs_of(past, none, main).then_some(past);
    }
    let first = branch(node, "then_branch")?.output.first()?.name();
    let way = first.rsplit('/').nth(1)?;
    let of_others = first.contains("/mla") && ["prompt", "step"].contains(&way);
    branch(node, "else_branch").filter(|_| is_op(node, "If") && of_others)
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
