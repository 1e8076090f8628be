//! The output of `rewrite --dry-run`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cli::rewrite::shown::loss_text;
use crate::cli::rewrite::summary::heads;
use crate::compress::foreseen::Foreseen;
use crate::files::save::output_path;
use crate::report::{counted, grouped};
use crate::serving::bundle::LeftOut;
use crate::serving::foreseen::ForeseenFolder;

/// The expected result for one model.
pub struct Plan<'p> {
    /// The model.
    pub file: &'p Path,
    /// The expected result of the compression.
    pub foreseen: &'p Foreseen,
    /// The files that would be written for it.
    pub written: Vec<PathBuf>,
}

/// The files that a rewrite of `model` to `out` would write; `has_data`: one of them is a data file.
pub fn written(model: &Path, out: &Path, has_data: bool) -> Vec<PathBuf> {
    let path = output_path(model, out);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let data = path.with_file_name(format!("{name}.<checksum>.data"));
    [path].into_iter().chain(has_data.then_some(data)).collect()
}

/// The expected results as text.
pub fn as_text(plans: &[Plan], folder: Option<&ForeseenFolder>, target: &str) -> String {
    let mut text = String::new();
    for plan in plans {
        if plans.len() > 1 {
            text.push_str(&format!("{}:\n", plan.file.display()));
        }
        text.push_str(&model_text(plan, target));
    }
    if let Some(folder) = folder {
        for stack in &folder.stacks {
            text.push_str(&format!(
                "would edit {} for {}, where its numbers change\n",
                stack.file(),
                stack.name()
            ));
        }
        if folder.copied > 0 {
            text.push_str(&format!(
                "would copy {}\n",
                counted(folder.copied, "other file")
            ));
        }
        if !folder.replaced.is_empty() {
            let names = folder
                .replaced
                .iter()
                .map(|file| file.display().to_string());
            let names = names.collect::<Vec<_>>().join(" and ");
            text.push_str(&format!("would replace {names} in the output folder\n"));
        }
        for left in &folder.left_out {
            text.push_str(&format!("would leave out {left}\n"));
        }
    }
    text.push_str("nothing was run or written (--dry-run)\n");
    text
}

fn model_text(plan: &Plan, target: &str) -> String {
    let foreseen = plan.foreseen;
    let heads = format!(" ({})", heads(foreseen.planned.iter().map(|p| &p.site)));
    let bits = match foreseen.bits.number() {
        Some(bits) => format!(", {bits} bits a cached number"),
        None => String::new(),
    };
    let most = match foreseen.promise {
        Some(_) => "at most ",
        None => "",
    };
    let ranks = match ranks(foreseen) {
        _ if foreseen.keeps_heads => "heads kept".to_owned(),
        (low, high) if low == high => format!("rank {most}{low}"),
        (low, high) => format!("ranks {low} to {high}"),
    };
    let kind = match (foreseen.promise, foreseen.is_exact) {
        (Some(promise), _) => format!(
            "the search decides, for {} at most {}",
            promise.name(),
            loss_text(promise, promise.limit())
        ),
        (None, true) => "exact".to_owned(),
        (None, false) => "an approximation".to_owned(),
    };
    let mut text = format!(
        "would rewrite {}{heads}, {ranks}{bits}, target {target}: {kind}\n",
        counted(foreseen.planned.len(), "attention")
    );
    let (before, after) = (foreseen.bytes_before, foreseen.bytes_after);
    match before {
        0 => text.push_str("no cache in this export, so none would shrink\n"),
        _ => text.push_str(&format!(
            "cache: {} -> {most}{} bytes a token ({:.1}%)\n",
            grouped(before),
            grouped(after),
            100.0 * after as f64 / before as f64
        )),
    }
    if foreseen.left > 0 {
        let left = counted(foreseen.left, "attention");
        text.push_str(&format!("would leave {left} as before\n"));
    }
    let names = plan.written.iter().map(|path| path.display().to_string());
    let names = names.collect::<Vec<_>>().join(" and ");
    text.push_str(&format!("would write {names}\n"));
    let there = plan.written.iter().filter(|path| path.exists());
    let there: Vec<String> = there.map(|path| path.display().to_string()).collect();
    if !there.is_empty() {
        text.push_str(&format!("would replace {}\n", there.join(" and ")));
    }
    text
}

fn ranks(foreseen: &Foreseen) -> (usize, usize) {
    let planned = foreseen.planned.iter();
    let ranks = planned.flat_map(|p| [p.ranks.key, p.ranks.value]);
    (ranks.clone().min().unwrap_or(0), ranks.max().unwrap_or(0))
}

/// The expected results as JSON.
pub fn as_json(plans: &[Plan], folder: Option<&ForeseenFolder>, target: &str) -> Value {
    let models = plans.iter().map(|plan| {
        let foreseen = plan.foreseen;
        let (low, high) = ranks(foreseen);
        let layers = foreseen.planned.iter().map(|p| {
            json!({
                "layer": p.site.layer, "id": p.id.as_str(), "name": p.site.name,
                "heads": p.site.heads, "kv_heads": p.site.kv_heads, "head_size": p.site.key.size,
                "key_rank": p.ranks.key, "value_rank": p.ranks.value, "shares_cache_of_layer": p.site.shares,
            })
        });
        json!({
            "file": plan.file, "rewritten": foreseen.planned.len(), "not_rewritten": foreseen.left, "target": target,
            "searches": foreseen.promise.map(|p| json!({ "promise": p.name(), "limit": p.limit() })),
            "exact": foreseen.promise.is_none().then_some(foreseen.is_exact),
            "cache_bits": foreseen.bits.number(), "rank_min": low, "rank_max": high,
            "cache_bytes_per_token_before": foreseen.bytes_before, "cache_bytes_per_token_after": foreseen.bytes_after,
            "layers": layers.collect::<Vec<_>>(), "written": plan.written,
            "replaced": plan.written.iter().filter(|path| path.exists()).collect::<Vec<_>>(),
        })
    });
    let folder = folder.map(|folder| {
        let stacks = folder.stacks.iter();
        json!({
            "serving": stacks.clone().map(|s| s.name()).collect::<Vec<_>>(),
            "configurations": stacks.map(|s| s.file()).collect::<Vec<_>>(),
            "copied": folder.copied, "replaced": folder.replaced, "left_out": LeftOut::files(&folder.left_out),
        })
    });
    json!({ "dry_run": true, "models": models.collect::<Vec<_>>(), "folder": folder })
}
