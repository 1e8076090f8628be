//! Pairs past inputs with present outputs, and finds the logits among the other outputs.

use crate::runtime::tensor::ElementType;
use crate::validate::error::ValidateError;
use crate::validate::port::{AxisSize, Port};

/// Words in the name of a cache that do not identify it: they only say that it is a cache, or that it is a past or
/// present.
const SIDE_WORDS: [&str; 13] = [
    "past", "present", "cache", "caches", "kv", "in", "out", "input", "output", "new", "updated",
    "next", "states",
];

/// Caches: pairs of past input and present output.
pub type Pairs<'a> = Vec<(&'a Port, &'a Port)>;

/// The result of the pairing: caches, logits, and inputs that are no caches.
pub struct Paired<'a> {
    /// The caches.
    pub pairs: Pairs<'a>,
    /// The output that holds the logits.
    pub logits: &'a Port,
    /// The inputs that are no caches, each with the reason.
    pub lonely: Vec<(&'a Port, &'static str)>,
}

/// Pairs the inputs `pasts` with `outputs`, and finds the logits among the outputs.
///
/// # Errors
/// [`ValidateError::Interface`] if no output holds the logits.
pub fn pair<'a>(pasts: &[&'a Port], outputs: &'a [Port]) -> Result<Paired<'a>, ValidateError> {
    let floats: Vec<&Port> = outputs.iter().filter(|port| is_float(port)).collect();
    let (pasts, others): (Vec<&Port>, Vec<&Port>) =
        pasts.iter().copied().partition(|port| is_cached(port));
    let neither = "it is neither token ids, a mask, positions nor a cache (floats, int8 or uint8 of rank 3 or more)";
    let mut lonely: Vec<(&Port, &str)> = others.into_iter().map(|p| (p, neither)).collect();
    let logits = logits(&floats, &pasts)?;
    let presents: Vec<&Port> = outputs
        .iter()
        .filter(|port| is_cached(port) && port.name != logits.name && port.dims.len() >= 3)
        .collect();

    let named = |past: &&'a Port| Some((*past, partner(past, &presents)?));
    let by_name: Pairs<'a> = pasts.iter().filter_map(named).collect();
    // If names do not match, inputs and outputs are paired by their order, provided that their numbers, ranks and types
    // agree.
    let fits = |(past, present): (&&Port, &&Port)| {
        past.dims.len() == present.dims.len() && past.elem_type == present.elem_type
    };
    let in_order = pasts.len() == presents.len() && pasts.iter().zip(&presents).all(fits);
    let pairs = match by_name.len() < pasts.len() && in_order {
        true => pasts.iter().copied().zip(presents).collect(),
        false => by_name,
    };
    let is_alone = |port: &&'a Port| pairs.iter().all(|(past, _)| past.name != port.name);
    let why = |past: &Port| {
        let is_bare = |port: &Port| port.dims.is_empty() && signature(port) == signature(past);
        match outputs.iter().any(is_bare) {
            true => "it looks like a cache, but the output of a matching name has no known shape",
            false => "it looks like a cache, but no output continues it under a matching name",
        }
    };
    lonely.extend(pasts.into_iter().filter(is_alone).map(|p| (p, why(p))));
    Ok(Paired {
        pairs,
        logits,
        lonely,
    })
}

/// The logits: found by name, or as the only float output of rank 3 whose name does not match a past.
fn logits<'a>(floats: &[&'a Port], pasts: &[&Port]) -> Result<&'a Port, ValidateError> {
    let of_rank: Vec<&Port> = floats
        .iter()
        .copied()
        .filter(|port| port.dims.len() == 3)
        .collect();
    if let Some(port) = of_rank.iter().find(|port| names_logits(port)) {
        return Ok(port);
    }
    let mut rest = of_rank
        .into_iter()
        .filter(|port| pasts.iter().all(|past| signature(past) != signature(port)));
    match (rest.next(), rest.next()) {
        (Some(port), None) => Ok(port),
        (None, _) => Err(ValidateError::Interface(
            "no output holds logits: floats [batch, tokens, vocabulary]".to_owned(),
        )),
        (Some(one), Some(other)) => Err(ValidateError::Interface(format!(
            "outputs {} and {} could both be the logits; name one of them logits",
            one.name, other.name
        ))),
    }
}

/// Whether an output of this name holds the logits.
pub fn names_logits(port: &Port) -> bool {
    port.name.to_lowercase().contains("logits")
}

fn partner<'a>(past: &Port, presents: &[&'a Port]) -> Option<&'a Port> {
    let wanted = signature(past);
    let mut fitting = presents
        .iter()
        .filter(|port| port.dims.len() == past.dims.len() && signature(port) == wanted);
    match (fitting.next(), fitting.next()) {
        (Some(port), None) => Some(port),
        _ => None,
    }
}

/// The sorted words of a cache's name without [`SIDE_WORDS`]: layer number, key or value, and others.
pub fn signature(port: &Port) -> Vec<String> {
    // In these the words key and value mean the whole cache.
    let mut name = port.name.to_lowercase();
    for whole in [
        "past_key_values",
        "past_key_value",
        "present_key_values",
        "present_key_value",
    ] {
        name = name.replace(whole, "cache");
    }
    let mut words = Vec::new();
    for chunk in name
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|chunk| !chunk.is_empty())
    {
        // `key3` is two words.
        let digits = chunk
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(chunk.len());
        let (word, number) = chunk.split_at(digits);
        words.extend(
            [word, number]
                .into_iter()
                .filter(|part| !part.is_empty())
                .map(str::to_owned),
        );
    }
    let mut kept: Vec<String> = words
        .into_iter()
        .filter(|word| !SIDE_WORDS.contains(&word.as_str()))
        .map(|word| match word.as_str() {
            "k" | "keys" => "key".to_owned(),
            "v" | "values" => "value".to_owned(),
            _ => word,
        })
        .collect();
    kept.sort();
    kept
}

/// Whether any values of `port`, which has no role, are suitable to compare two models: floats of a smaller rank than caches
/// and states, such as the factors of an adapter; flags of a known size; and integers of every token in the shape of the
/// token ids `tokens`, such as segment ids. Other integers may be counters, whose values cannot be guessed.
pub fn is_given(port: &Port, tokens: &Port) -> bool {
    let of_tokens = port.dims.len() > 1 && port.dims == tokens.dims;
    match ElementType::from_onnx(port.elem_type) {
        Some(ElementType::Bool) => is_fixed(port),
        Some(ElementType::I32 | ElementType::I64) => of_tokens,
        _ => is_float(port) && port.dims.len() < 3,
    }
}

/// Whether every axis of `port` has a constant size.
pub fn is_fixed(port: &Port) -> bool {
    port.dims
        .iter()
        .all(|dim| matches!(dim, AxisSize::Fixed(_)))
}

/// The axis of `past` that grows, or `None` for a state of constant size: the axis without a constant size, besides the
/// batch. If there are several, or it has a constant size in `past`, the one that is declared differently in `present`.
///
/// # Errors
/// A text for messages, if no axis or several may be the growing one.
pub fn length_axis(
    past: &Port,
    present: &Port,
    batch_axis: usize,
) -> Result<Option<usize>, &'static str> {
    let open: Vec<usize> = past
        .dims
        .iter()
        .enumerate()
        .filter(|(axis, dim)| *axis != batch_axis && !matches!(dim, AxisSize::Fixed(_)))
        .map(|(axis, _)| axis)
        .collect();
    // A state of constant size.
    if open.is_empty() && past.dims == present.dims {
        return Ok(None);
    }
    let grows = |axis: &usize| {
        let (before, after) = (past.dims.get(*axis), present.dims.get(*axis));
        before != after || matches!(before, Some(AxisSize::Unknown))
    };
    let growing: Vec<usize> = open.iter().copied().filter(grows).collect();
    // A window of a constant number of rows, to which the new ones are added.
    let longer = |axis: &usize| match (past.dims.get(*axis), present.dims.get(*axis)) {
        // A smaller present has the new rows alone.
        (Some(AxisSize::Fixed(before)), Some(AxisSize::Fixed(after))) => after != before,
        (Some(AxisSize::Fixed(_)), Some(after)) => growing.is_empty() && !is_constant(after),
        _ => false,
    };
    let others = (0..past.dims.len()).filter(|axis| *axis != batch_axis);
    let longer: Vec<usize> = others.filter(longer).collect();
    let usual = if past.dims.len() == 3 {
        1
    } else {
        past.dims.len().saturating_sub(2)
    };
    match (longer.as_slice(), open.as_slice(), growing.as_slice()) {
        ([axis], _, _) | (_, [axis], _) | (_, _, [axis]) => Ok(Some(*axis)),
        (fixed, open, _) if fixed.contains(&usual) || open.contains(&usual) => Ok(Some(usual)),
        _ => Err("no axis of this cache can grow"),
    }
}

fn is_constant(size: &AxisSize) -> bool {
    matches!(size, AxisSize::Fixed(_))
}

/// Whether `port` may be a cache by its element type: floats, or integers of a quantized cache.
fn is_cached(port: &Port) -> bool {
    let element = ElementType::from_onnx(port.elem_type);
    element.is_some_and(|e| e.is_float() || e.is_rounded())
}

pub fn is_float(port: &Port) -> bool {
    ElementType::from_onnx(port.elem_type).is_some_and(ElementType::is_float)
}
