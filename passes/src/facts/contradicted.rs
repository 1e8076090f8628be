//! Declarations that the nodes of a model contradict.

use crate::facts::Rules;
use crate::facts::agree::{differ, text};
use crate::facts::scoped::ScopeFacts;
use crate::graph::text::type_name;
use crate::onnx::stored::Model;

/// A value whose declared element type or shape contradicts the inferred one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongDeclaration {
    /// The value: a graph output, or one that `value_info` lists.
    pub value: String,
    /// The declared element type or shape, as text.
    pub declared: String,
    /// The inferred one, as text.
    pub inferred: String,
}

/// The first declaration in `model` that contradicts the inferred type or shape. Such a declaration is no error by
/// itself: ONNX Runtime only warns about a wrong shape, and inferred facts take precedence. The caller uses it to
/// explain why the facts of a rewritten model are incomplete.
pub fn wrong_declaration(model: &Model, rules: &Rules) -> Option<WrongDeclaration> {
    let main = model.proto.graph.as_ref()?;
    let mut found = None;
    ScopeFacts::infer(model, main, rules).for_each(main, &mut |scoped| {
        let graph = scoped.graph.proto();
        let mut described = graph.output.iter().chain(&graph.value_info);
        found = found.take().or_else(|| {
            described.find_map(|info| {
                let value = info.name();
                let wrong = |declared: String, inferred: String| WrongDeclaration {
                    value: value.to_owned(),
                    declared,
                    inferred,
                };
                let declared = scoped.facts.declared(info);
                let types = declared.elem_type.zip(scoped.facts.elem_type(value));
                if let Some((a, b)) = types.filter(|(a, b)| a != b) {
                    return Some(wrong(type_name(a), type_name(b)));
                }
                let (declared, inferred) = (declared.shape?, scoped.facts.shape(value)?);
                let differs = declared.len() != inferred.len()
                    || declared.iter().zip(inferred).any(|(a, b)| differ(a, b));
                differs.then(|| wrong(text(&declared), text(inferred)))
            })
        });
    });
    found
}
