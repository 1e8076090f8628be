use std::collections::HashMap;
use std::path::PathBuf;

use clap::Args;
use gqa2mla::model::load::{LoadedModel, load};
use gqa2mla_passes::graph::text;
use serde_json::{Value, json};

use super::Outcome;
use super::screen::{emit, emit_json};

/// Show the nodes, initializers and interface in which two models differ.
///
/// Example: gqa2mla diff fixtures/optimum-llama fixtures/optimum-qwen2
#[derive(Debug, Args)]
pub struct Diff {
    /// A .onnx file, or a folder that holds one.
    before: PathBuf,
    /// Another.
    after: PathBuf,
}

/// One part of the models, as lines.
struct Section {
    name: &'static str,
    removed: Vec<String>,
    added: Vec<String>,
}

impl Diff {
    pub fn run(self, json: bool) -> anyhow::Result<Outcome> {
        let (before, after) = (load(&self.before)?, load(&self.after)?);
        let sections: Vec<Section> = [
            ("model", header as fn(&LoadedModel) -> Vec<String>),
            ("interface", interface),
            ("initializers", initializers),
            ("nodes", nodes),
        ]
        .into_iter()
        .map(|(name, lines)| section(name, lines(&before), lines(&after)))
        .collect();
        if json {
            let parts = sections.iter().map(|s| {
                (
                    s.name.to_owned(),
                    json!({ "removed": s.removed, "added": s.added }),
                )
            });
            emit_json(&Value::Object(parts.collect()));
            return Ok(Outcome::Done);
        }
        let mut out = String::new();
        for part in sections
            .iter()
            .filter(|s| !s.removed.is_empty() || !s.added.is_empty())
        {
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
        emit(if out.is_empty() {
            "the models are the same"
        } else {
            &out
        });
        Ok(Outcome::Done)
    }
}

/// What is in one list and not in the other, in order; repeated lines count.
fn section(name: &'static str, before: Vec<String>, after: Vec<String>) -> Section {
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
    Section {
        name,
        removed: missing(&before, &after),
        added: missing(&after, &before),
    }
}

fn header(model: &LoadedModel) -> Vec<String> {
    text::header(&model.model.proto)
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
    graph
        .initializer
        .iter()
        .map(|tensor| {
            // Weights are told apart by a checksum, never by their numbers.
            let content = model.model.tensor_bytes(tensor).map_or_else(
                |_| "unreadable".to_owned(),
                |b| format!("{:08x}", crc32fast::hash(&b)),
            );
            format!("{} crc32 {content}", text::initializer(tensor))
        })
        .collect()
}

fn nodes(model: &LoadedModel) -> Vec<String> {
    let Some(graph) = &model.model.proto.graph else {
        return Vec::new();
    };
    graph.node.iter().map(text::node).collect()
}
