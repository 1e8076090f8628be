use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use gqa2mla_passes::graph::text::type_name;
use gqa2mla_passes::onnx::ModelProto;
use gqa2mla_passes::onnx::stored::element_bits;
use gqa2mla_passes::recognize::reject::Reject;
use gqa2mla_passes::recognize::site::Site;
use gqa2mla_passes::{Inspection, inspect};
use serde_json::{Value, json};

use crate::cli::escaped::in_line;
use crate::cli::exit::Exit;
use crate::cli::screen::{Screen, table};
use crate::files::load::{LoadError, load};
use crate::files::origin::{REWRITTEN, is_rewritten};
use crate::report::{counted, grouped};

/// List every recognised attention, and every other one with the node and the reason.
///
/// Example: gqa2mla inspect fixtures/optimum-llama
#[derive(Debug, Args)]
pub struct Inspect {
    /// A .onnx file, or a folder with models.
    model: PathBuf,
    /// For each attention that is not recognised: the operand, the node, what was expected and found, and what to do.
    #[arg(long)]
    why: bool,
}

impl Inspect {
    pub fn run(self, screen: &Screen) -> anyhow::Result<Exit> {
        let models = match load(&self.model) {
            Ok(one) => vec![one],
            Err(LoadError::Folder { models, .. }) if !models.is_empty() => {
                let models = models.iter().map(|path| load(path));
                models.collect::<Result<_, _>>()?
            }
            Err(error) => return Err(error.into()),
        };
        let several = models.len() > 1;
        let (mut texts, mut data) = (Vec::new(), Vec::new());
        let mut exit = Exit::Done;
        for model in models {
            let path = model.path.display().to_string();
            let found = inspect(&model.model).with_context(|| path.clone())?;
            let proto = &model.model.proto;
            texts.push(as_text(&path, proto, &found, self.why));
            data.push(as_json(&path, proto, &found));
            // Other models of a folder, such as an encoder, need not have an attention.
            let is_other = several && found.attentions() == 0;
            if !is_other && (found.sites.is_empty() || !found.rejects.is_empty()) {
                exit = Exit::Nothing;
            }
        }
        let only = |data: &[Value]| match data {
            [one] => one.clone(),
            several => json!({ "models": several }),
        };
        screen.show(|| texts.join("\n"), || only(&data));
        Ok(exit)
    }
}

/// Bytes of cache per token in all `sites`.
pub fn cache_bytes(sites: &[Site]) -> u64 {
    let cached = once(sites).into_iter().filter(|s| s.has_own_cache());
    cached.map(site_bytes).sum()
}

/// One site for each layer, if branches contain several sites of one layer.
fn once(sites: &[Site]) -> Vec<&Site> {
    let mut seen = BTreeSet::new();
    sites.iter().filter(|s| seen.insert(s.layer)).collect()
}

fn site_bytes(site: &Site) -> u64 {
    bytes(site.cached_type, site.cached_numbers())
}

/// Size in bytes of `count` elements of type `elem_type`.
pub fn bytes(elem_type: i32, count: usize) -> u64 {
    u64::from(element_bits(elem_type).unwrap_or(0)) * count as u64 / 8
}

fn as_text(path: &str, model: &ModelProto, found: &Inspection, why: bool) -> String {
    let (sites, rejects) = (&found.sites, &found.rejects);
    let opset = model
        .opset_import
        .iter()
        .find(|o| o.domain().is_empty())
        .map_or(0, |o| o.version());
    let nodes = model.graph.as_ref().map_or(0, |g| g.node.len());
    let producer = [model.producer_name(), model.producer_version()];
    let producer: Vec<&str> = producer
        .into_iter()
        .filter(|word| !word.is_empty())
        .collect();
    let mut text = format!("{path}: opset {opset}, {}", counted(nodes, "node"));
    if !producer.is_empty() {
        text.push_str(&format!(", written by {}", in_line(&producer.join(" "))));
    }
    text.push('\n');
    if is_rewritten(model) {
        text.push_str(&format!("{REWRITTEN}\n"));
    }
    text.push_str(&format!(
        "{} of {} recognised",
        found.recognised(),
        counted(found.attentions(), "attention")
    ));
    match sites.iter().any(Site::is_cached) {
        true => text.push_str(&format!(
            ", {} bytes of cache a token\n",
            grouped(cache_bytes(sites))
        )),
        // Without a recognised attention, it is unknown whether there is a cache.
        false if found.attentions() == 0 => text.push_str(
            ": no softmax between two products and no attention operator was found, so there is no attention in a form that is known; --why lists what was passed over\n",
        ),
        false if sites.is_empty() => text.push('\n'),
        false => text.push_str(", no cache\n"),
    }
    if !sites.is_empty() {
        let mut table = table(&[
            "layer", "H", "G", "d", "dv", "type", "bytes", "dialect", "module",
        ]);
        for group in once(sites).chunk_by(|a, b| shape(a) == shape(b)) {
            if let (Some(first), Some(last)) = (group.first(), group.last()) {
                table.add_row(row(first, last, group.len()));
            }
        }
        text.push_str(&format!("\n{table}\n"));
        let places: BTreeSet<&String> = sites.iter().filter_map(|s| s.within.as_ref()).collect();
        for place in places {
            text.push_str(&format!("in the {}\n", in_line(place)));
        }
    }
    // The reasons of a rewritten model are about nodes of the rewrite.
    if !rejects.is_empty() && (why || !is_rewritten(model)) {
        text.push_str("\nnot recognised:\n");
        for reject in rejects {
            text.push_str(&format!("  {}\n", in_line(&reject.to_string())));
            if why {
                let reason = &reject.reason;
                text.push_str(&format!(
                    "    reason: {}\n    to do: {}\n",
                    reason.code(),
                    reason.advice()
                ));
            }
        }
    }
    if why {
        for other in &found.others {
            text.push_str(&format!(
                "\nnot a site: {}, at node '{}'\n",
                other.reason,
                in_line(&other.node)
            ));
        }
    }
    text
}

/// The table row for `count` attentions that differ only in layer and module.
fn row(first: &Site, last: &Site, count: usize) -> Vec<String> {
    let (layers, module) = match count {
        1 => (first.layer.to_string(), in_line(&first.name)),
        _ => (
            format!("{}-{}", first.layer, last.layer),
            format!("{} and {} more", in_line(&first.name), count - 1),
        ),
    };
    let mut cells = vec![layers];
    cells.extend(shape(first));
    cells.push(module);
    cells
}

/// The columns of an attention other than layer and module.
fn shape(site: &Site) -> [String; 7] {
    [
        site.heads.to_string(),
        site.kv_heads.to_string(),
        site.key.size.to_string(),
        site.value.size.to_string(),
        type_name(site.cached_type),
        match site.shares {
            Some(first) => format!("layer {first}'s"),
            None if site.is_cached() => grouped(site_bytes(site)),
            None => "no cache".to_owned(),
        },
        site.dialect.name().to_owned(),
    ]
}

fn as_json(path: &str, model: &ModelProto, found: &Inspection) -> Value {
    let (sites, rejects) = (&found.sites, &found.rejects);
    let sites_json: Vec<Value> = sites
        .iter()
        .map(|s| {
            json!({
                "layer": s.layer, "within": s.within, "module": s.name, "dialect": s.dialect.name(), "heads": s.heads, "kv_heads": s.kv_heads,
                "head_size": s.key.size, "value_size": s.value.size, "type": type_name(s.cached_type), "cached": s.is_cached(),
                "past_key": s.key.cache.as_ref().map(|c| &c.past), "past_value": s.value.cache.as_ref().map(|c| &c.past),
                "cache_bytes_per_token": if s.has_own_cache() { site_bytes(s) } else { 0 }, "shares_cache_of_layer": s.shares,
                "full_rank": s.full_rank(),
            })
        })
        .collect();
    json!({
        "model": path,
        "opset": model.opset_import.iter().find(|o| o.domain().is_empty()).map_or(0, |o| o.version()),
        "nodes": model.graph.as_ref().map_or(0, |g| g.node.len()),
        "recognised": found.recognised(),
        "not_recognised": found.attentions() - found.recognised(),
        "cache_bytes_per_token": cache_bytes(sites),
        "sites": sites_json,
        "rejects": rejects_json(rejects),
        "not_sites": rejects_json(&found.others),
    })
}

/// The rejects as JSON.
pub fn rejects_json(rejects: &[Reject]) -> Vec<Value> {
    rejects
        .iter()
        .map(|r| json!({ "layer": r.layer, "within": r.within, "node": r.node, "code": r.reason.code(), "reason": r.reason.to_string(), "advice": r.reason.advice() }))
        .collect()
}
