//! What a comparison says beside its rows: the options that they need, and which rows are not as they were requested.

use gqa2mla_passes::operators::Target;
use serde_json::{Value, json};

use crate::compress::sizes::{LeftOut, Rounded};
use crate::compress::way::{Way, width};
use crate::compress::ways::{Compared, WayMeasured};
use crate::report::{change, measured, short};

/// The lines under the table. `both_named`: methods and bits were both chosen, so that every combination was meant.
pub fn notes(compared: &Compared, both_named: bool) -> Vec<String> {
    let mut lines: Vec<String> = needs(&compared.rows).into_iter().collect();
    for one in &compared.rounded {
        let line = rounded(one);
        // The same for several methods.
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.extend(left_out(&compared.left_out));
    let has_rows = |way: &Way| compared.rows.iter().any(|row| row.way == *way);
    let unmade = compared.unmade.iter();
    let unmade = unmade.filter(|one| both_named || !one.ways.iter().any(has_rows));
    lines.extend(unmade.map(|one| format!("not compared: {one}")));
    lines.extend(least_lost(&compared.rows));
    lines
}

/// The lines about the row with the smallest KL at each size.
fn least_lost(rows: &[WayMeasured]) -> Vec<String> {
    let mut best: Vec<&WayMeasured> = Vec::new();
    for row in rows {
        match best.iter_mut().find(|known| known.ratio == row.ratio) {
            Some(known) if known.point.kl > row.point.kl => *known = row,
            Some(_) => {}
            None => best.push(row),
        }
    }
    let line = |row: &WayMeasured| {
        let bits = row.point.bits.map(|bits| format!(" with {bits} bits"));
        format!(
            "least lost at {}: {}{}, {} bytes a token: perplexity {}, KL {}",
            percent(row.ratio),
            row.way.name(),
            bits.unwrap_or_default(),
            measured(row.point.bytes),
            change(row.point.perplexity_increase),
            short(row.point.kl)
        )
    };
    best.into_iter().map(line).collect()
}

/// The line about rows that only `--target gqa` writes.
fn needs(rows: &[WayMeasured]) -> Option<String> {
    let latents = rows
        .iter()
        .filter(|row| row.target == Target::Gqa && row.way != Way::KeptHeads);
    let mut bits: Vec<String> = Vec::new();
    for row in latents {
        let number = row
            .point
            .bits
            .map_or_else(String::new, |bits| bits.to_string());
        if !bits.contains(&number) {
            bits.push(number);
        }
    }
    let bits = bits.join(" and ");
    (!bits.is_empty()).then(|| format!("rewrite needs --target gqa for a latent of {bits} bits"))
}

/// The line about a rank that is not the requested one.
fn rounded(one: &Rounded) -> String {
    let Rounded {
        bits,
        ratio,
        asked,
        rank,
        step,
        ..
    } = one;
    format!(
        "{} at {} bits: rank {rank} in place of {asked}, because GroupQueryAttention needs a multiple of {step}",
        percent(*ratio),
        width(*bits)
    )
}

/// Methods, each with its shares.
type Methods = Vec<(String, Vec<String>)>;

/// The lines for methods that cannot be applied to the model, one for each reason.
fn left_out(left: &[LeftOut]) -> Vec<String> {
    let mut groups: Vec<(String, Methods)> = Vec::new();
    for one in left {
        let what = match one.bits.number() {
            Some(bits) => format!("{} with {bits} bits", one.way.name()),
            None => one.way.name().to_owned(),
        };
        let (why, ratio) = (one.cause.to_string(), percent(one.ratio));
        let at = groups.iter().position(|(known, _)| *known == why);
        let at = at.unwrap_or_else(|| {
            groups.push((why, Vec::new()));
            groups.len() - 1
        });
        let Some((_, methods)) = groups.get_mut(at) else {
            continue;
        };
        match methods.iter_mut().find(|(known, _)| *known == what) {
            Some((_, ratios)) => ratios.push(ratio),
            None => methods.push((what, vec![ratio])),
        }
    }
    let line = |(why, methods): (String, Methods)| {
        let methods = methods
            .iter()
            .map(|(what, ratios)| format!("{what} at {}", ratios.join(", ")));
        format!(
            "left out: {}: {why}",
            methods.collect::<Vec<_>>().join("; ")
        )
    };
    groups.into_iter().map(line).collect()
}

/// A share as a percentage, as it is asked for.
fn percent(ratio: f64) -> String {
    // Rounded to the digits that a share of two decimals of a percent has.
    format!("{}%", (ratio * 1e4).round() / 1e2)
}

/// The comparison as JSON.
pub fn as_json(compared: &Compared) -> Value {
    let rows = compared.rows.iter().map(|row| {
        json!({
            "cache_ratio": row.ratio, "way": row.way.name(), "bits": row.point.bits,
            "rank": row.point.rank, "target": target_name(row.target), "quality": row.quality,
            "perplexity_increase": row.quality.increase(),
            "worst_perplexity_increase": row.quality.worst_increase(),
        })
    });
    let rounded = compared.rounded.iter().map(|one| {
        json!({
            "cache_ratio": one.ratio, "way": one.way.name(), "bits": one.bits.number(),
            "asked_rank": one.asked, "rank": one.rank, "multiple_of": one.step,
        })
    });
    let left_out = compared.left_out.iter().map(|left| {
        json!({
            "cache_ratio": left.ratio, "way": left.way.name(), "bits": left.bits.number(),
            "reason": left.cause.to_string(),
        })
    });
    let unmade = compared.unmade.iter().map(|one| {
        let ways = one.ways.iter().map(|way| way.name()).collect::<Vec<_>>();
        let bits = one
            .bits
            .iter()
            .map(|bits| bits.number())
            .collect::<Vec<_>>();
        json!({ "ways": ways, "bits": bits, "reason": one.why })
    });
    json!({
        "rows": rows.collect::<Vec<_>>(), "rounded": rounded.collect::<Vec<_>>(),
        "left_out": left_out.collect::<Vec<_>>(), "not_compared": unmade.collect::<Vec<_>>(),
    })
}

/// The operators of a row as the value of `--target`.
fn target_name(target: Target) -> &'static str {
    match target {
        Target::MatMul => "matmul",
        Target::Gqa => "gqa",
    }
}
