use std::collections::HashMap;
use std::path::PathBuf;

use clap::Args;
use gqa2mla_passes::graph::{label, text};
use gqa2mla_passes::onnx::{NodeProto, TensorProto};
use serde_json::{Value, json};

use crate::cli::exit::Exit;
use crate::cli::screen::Screen;
use crate::files::identity::identity;
use crate::files::load::{LoadedModel, load};

/// Show the nodes, initializers and interface in which two models differ; exit code 1 if they do.
///
/// Example: gqa2mla diff --exit-zero fixtures/optimum-llama fixtures/optimum-qwen2
#[derive(Debug, Args)]
pub struct Diff {
    /// A .onnx file, or a folder with one model.
    before: PathBuf,
    /// The model to compare with it: a .onnx file, or a folder with one model.
    after: PathBuf,
    /// Exit with code 0 even if the models differ.
    #[arg(long)]
    exit_zero: bool,
}

/// The differences of one part of the models, as lines.
struct DiffSection {
    name: &'static str,
    removed: Vec<String>,
    added: Vec<String>,
}

impl DiffSection {
    fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }
}

impl Diff {
    pub fn run(self, screen: &Screen) -> anyhow::Result<Exit> {
        let (before, after) = (load(&self.before)?, load(&self.after)?);
        let sections: Vec<DiffSection> = [
            ("model", header as fn(&LoadedModel) -> Vec<String>),
            ("interface", interface),
            ("initializers", initializers),
            ("nodes", nodes),
        ]
        .into_iter()
        .map(|(name, lines)| section(name, lines(&before), lines(&after)))
        .collect();
        let same = sections.iter().all(DiffSection::is_empty)
            && identity(&before.model)? == identity(&after.model)?;
        let exit = match same || self.exit_zero {
            true => Exit::Done,
            false => Exit::Failed,
        };
        screen.show(|| as_text(&sections, same), || as_json(&sections, same));
        Ok(exit)
    }
}

fn as_text(sections: &[DiffSection], same: bool) -> String {
    let mut out = String::new();
    for part in sections.iter().filter(|s| !s.is_empty()) {
        out.push_str(&format!(
            "{}: {} removed, {} added\n",
            part.name,
            part.removed.len(),
            part.added.len()
        ));
        part.removed
            .iter()
            .for_each(|line| out.push_str(&format!("- {line}\n")));
        part.added
            .iter()
            .for_each(|line| out.push_str(&format!("+ {line}\n")));
    }
    match (out.is_empty(), same) {
        (false, _) => out,
        (true, true) => "the models are the same".to_owned(),
        (true, false) => "the models differ in what this text does not show: doc strings, inner value descriptions, metadata of nodes or order".to_owned(),
    }
}

fn as_json(sections: &[DiffSection], same: bool) -> Value {
    let part = |s: &DiffSection| json!({ "removed": s.removed, "added": s.added });
    let parts = sections.iter().map(|s| (s.name.to_owned(), part(s)));
    let same = ("same".to_owned(), json!(same));
    Value::Object(parts.chain([same]).collect())
}

/// The lines that are in only one of the lists, in order. Repeated lines are counted.
fn section(name: &'static str, before: Vec<String>, after: Vec<String>) -> DiffSection {
    let missing = |from: &[String], other: &[String]| {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        other
            .iter()
            .for_each(|line| *counts.entry(line).or_default() += 1);
        from.iter()
            .filter(|line| match counts.get_mut(line.as_str()) {
                Some(count) if *count > 0 => {
                    *count -= 1;
                    false
                }
                _ => true,
            })
            .cloned()
            .collect()
    };
    DiffSection {
        name,
        removed: missing(&before, &after),
        added: missing(&after, &before),
    }
}

fn header(model: &LoadedModel) -> Vec<String> {
    let mut lines = text::header(&model.model.proto);
    // Metadata is compared with values, not only keys.
    lines.retain(|line| !line.starts_with("metadata "));
    let properties = model.model.proto.metadata_props.iter();
    lines.extend(properties.map(|p| format!("metadata {} = {:?}", p.key(), p.value())));
    lines
}

fn interface(model: &LoadedModel) -> Vec<String> {
    let Some(graph) = &model.model.proto.graph else {
        return Vec::new();
    };
    let inputs = graph
        .input
        .iter()
        .map(|v| format!("input {}", text::value(v)));
    inputs
        .chain(
            graph
                .output
                .iter()
                .map(|v| format!("output {}", text::value(v))),
        )
        .collect()
}

fn initializers(model: &LoadedModel) -> Vec<String> {
    let Some(graph) = &model.model.proto.graph else {
        return Vec::new();
    };
    let dense = graph
        .initializer
        .iter()
        .map(|t| format!("{} {}", text::initializer(t), content(model, t)));
    let sparse = graph.sparse_initializer.iter().filter_map(|t| {
        let (values, indices) = (t.values.as_ref()?, t.indices.as_ref()?);
        let (v, i) = (content(model, values), content(model, indices));
        Some(format!(
            "sparse {} {v}, indices {i}",
            text::initializer(values)
        ))
    });
    dense.chain(sparse).collect()
}

/// A checksum of a weight, by which it is compared.
fn content(model: &LoadedModel, tensor: &TensorProto) -> String {
    model.model.tensor_bytes(tensor).map_or_else(
        |_| "unreadable".to_owned(),
        |b| format!("crc32 {:08x}", crc32fast::hash(&b)),
    )
}

/// All nodes of the main graph, its subgraphs and the functions.
fn nodes(model: &LoadedModel) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(graph) = &model.model.proto.graph {
        nodes_of(model, &graph.node, "", &mut lines);
    }
    for function in &model.model.proto.functions {
        let place = format!("function {}.{}: ", function.domain(), function.name());
        nodes_of(model, &function.node, &place, &mut lines);
    }
    lines
}

fn nodes_of(model: &LoadedModel, nodes: &[NodeProto], place: &str, lines: &mut Vec<String>) {
    for node in nodes {
        let tensors = node.attribute.iter().filter_map(|a| a.t.as_ref());
        let contents: Vec<String> = tensors.map(|t| content(model, t)).collect();
        let contents = contents.join(" ");
        lines.push(
            format!("{place}{} {contents}", text::node(node))
                .trim_end()
                .to_owned(),
        );
        for attribute in &node.attribute {
            for graph in attribute.g.iter().chain(&attribute.graphs) {
                let place = format!("{place}{} {}: ", label(node), attribute.name());
                let weights = graph.initializer.iter();
                lines.extend(
                    weights
                        .map(|t| format!("{place}{} {}", text::initializer(t), content(model, t))),
                );
                nodes_of(model, &graph.node, &place, lines);
            }
        }
    }
}
