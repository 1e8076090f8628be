//! Determines the role of an input from its name, type and rank.

use crate::runtime::tensor::ElementType;
use crate::validate::error::ValidateError;
use crate::validate::port::{AxisSize, Port, Role};

/// The role of an input by its name and type; `None` for inputs that may be caches or token ids.
///
/// # Errors
/// A text for messages, if name and type contradict each other, or if a language model has no inputs of this type.
pub fn plain_role(port: &Port) -> Result<Option<Role>, String> {
    let name = port.name.to_lowercase();
    let element = ElementType::from_onnx(port.elem_type).ok_or_else(|| strange(port))?;
    let rank = port.dims.len();
    let has = |part: &str| name.contains(part);
    let role = if has("encoder") {
        (
            Role::Context,
            rank == 2 || (element.is_float() && (3..=4).contains(&rank)),
        )
    } else if has("cache_position") {
        (Role::CachePosition, element.is_integer() && rank == 1)
    } else if has("write_ind") {
        (Role::WriteIndices, element.is_integer() && rank == 1)
    } else if has("nonpad_kv_seqlen") {
        (Role::WrittenRows, element.is_integer() && rank == 1)
    } else if tells_a_past(&name) {
        (
            Role::UseCacheBranch,
            element == ElementType::Bool && rank <= 1,
        )
    } else if has("logits_to_keep") {
        (Role::LogitsToKeep, element.is_integer() && rank <= 1)
    } else if has("mask") {
        (Role::AttentionMask, rank == 2 || rank == 4)
    } else if has("position") {
        (
            Role::PositionIds,
            element.is_integer() && (1..=3).contains(&rank),
        )
    } else if element.is_integer() && rank <= 2 && counts_tokens(&name) {
        let role = match has("total") {
            true => Role::TotalLength,
            false => Role::PastLength,
        };
        (role, true)
    } else if has("beam") {
        (Role::BeamIds, element.is_integer() && rank == 1)
    } else if has("embeds") {
        let width_known = matches!(port.dims.last(), Some(AxisSize::Fixed(_)));
        (
            Role::InputsEmbeds,
            element.is_float() && rank == 3 && width_known,
        )
    } else {
        return Ok(None);
    };
    match role {
        (role, true) => Ok(Some(role)),
        (role, false) => Err(format!(
            "by its name it is {role:?}, but its type or rank is not"
        )),
    }
}

/// Whether an input of this name tells a merged decoder that there is a past.
pub fn tells_a_past(name: &str) -> bool {
    name.contains("use_cache")
}

/// Whether an input of this name is the number of past tokens, or of all, such as `past_seq_len` or `total_sequence_length`.
fn counts_tokens(name: &str) -> bool {
    let words: Vec<&str> = name.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let has = |any: &[&str]| words.iter().any(|word| any.contains(word));
    has(&["past", "total"]) && has(&["len", "length", "lengths", "seqlen", "seqlens"])
}

/// Finds the input with the tokens: by name, or as the only integer matrix without another role.
///
/// # Errors
/// [`ValidateError::Interface`] if there is none.
pub fn token_port<'a>(
    ports: &'a [Port],
    roles: &mut [Option<Role>],
) -> Result<&'a Port, ValidateError> {
    let free = ports
        .iter()
        .zip(roles.iter_mut())
        .filter(|(_, role)| role.is_none());
    let mut matrices: Vec<_> = free
        .filter(|(port, _)| port.dims.len() == 2)
        .filter(|(port, _)| element(port).is_ok_and(ElementType::is_integer))
        .collect();
    let named = |port: &Port| {
        let name = port.name.to_lowercase();
        ["input_id", "token", "ids"]
            .iter()
            .any(|part| name.contains(part))
    };
    let at = match matrices.iter().position(|(port, _)| named(port)) {
        Some(at) => Some(at),
        None => (matrices.len() == 1).then_some(0),
    };
    if let Some(at) = at
        && at < matrices.len()
    {
        let (port, role) = matrices.swap_remove(at);
        *role = Some(Role::TokenIds);
        return Ok(port);
    }
    let embedded = ports
        .iter()
        .zip(roles.iter())
        .find(|(_, role)| **role == Some(Role::InputsEmbeds));
    let none = || {
        ValidateError::Interface(
            "no input holds token ids: an integer matrix [batch, tokens]".to_owned(),
        )
    };
    embedded.map(|(port, _)| port).ok_or_else(none)
}

/// The batch axis of a cache: the one with the symbol `batch`; otherwise the first, or the second if keys and values
/// are stacked on the first.
pub fn batch_axis(past: &Port, batch: &AxisSize) -> usize {
    let by_symbol = match batch {
        AxisSize::Symbol(_) => past.dims.iter().position(|dim| dim == batch),
        AxisSize::Fixed(_) | AxisSize::Unknown => None,
    };
    by_symbol.unwrap_or(usize::from(
        past.dims.len() == 5 && past.dims.first() == Some(&AxisSize::Fixed(2)),
    ))
}

/// The element type of a port.
///
/// # Errors
/// [`ValidateError::Input`] for types that inputs and outputs of language models do not have.
pub fn element(port: &Port) -> Result<ElementType, ValidateError> {
    let none = || unknown(port, &strange(port));
    ElementType::from_onnx(port.elem_type).ok_or_else(none)
}

fn strange(port: &Port) -> String {
    format!(
        "element type {} is not one of a language model's interface",
        port.elem_type
    )
}

/// The error of an input whose role is unknown, with the reason.
pub fn unknown(port: &Port, reason: &str) -> ValidateError {
    ValidateError::Input {
        name: port.name.clone(),
        reason: reason.to_owned(),
    }
}
