use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use gqa2mla_passes::graph::text;
use serde_json::json;

use crate::cli::exit::Exit;
use crate::cli::screen::Screen;
use crate::files::load::load;

/// Print the graph as stable text: short constants with elements, weights as shapes.
///
/// Example: gqa2mla print fixtures/optimum-llama --layer 0
#[derive(Debug, Args)]
pub struct Print {
    /// A .onnx file, or a folder with one model.
    model: PathBuf,
    /// Print only the nodes of this layer, counted from 0.
    #[arg(long, value_name = "N")]
    layer: Option<usize>,
}

impl Print {
    pub fn run(self, screen: &Screen) -> anyhow::Result<Exit> {
        let loaded = load(&self.model)?;
        let path = loaded.path.display().to_string();
        let proto = &loaded.model.proto;
        let graph = proto
            .graph
            .as_ref()
            .with_context(|| format!("{path}: the model has no graph"))?;
        let lines = match self.layer {
            None => [text::header(proto), text::graph(graph)].concat(),
            Some(layer) => text::layer(graph, layer),
        };
        if let (Some(layer), true) = (self.layer, lines.is_empty()) {
            bail!("{path}: no node's name or scope says that it belongs to layer {layer}");
        }
        screen.show(
            || lines.join("\n"),
            || json!({ "model": path, "lines": lines }),
        );
        Ok(Exit::Done)
    }
}
