//! Declarations that the nodes of a model contradict.

use crate::facts::Rules;
use crate::facts::agree::{differ, text};
use crate::facts::scoped::ScopeFacts;
use crate::onnx::stored::Model;

/// A value whose declared shape contradicts what its node gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongDeclaration {
    /// The value: a graph output, or one that `value_info` lists.
    pub value: String,
    /// The declared shape, as text.
    pub declared: String,
    /// The inferred shape, as text.
    pub inferred: String,
}

/// The first contradiction in `model`. ONNX Runtime runs such models with a warning, and facts take the inferred shape,
/// so that a contradiction only counts for a value whose shape cannot be inferred any more.
pub fn wrong_declaration(model: &Model, rules: &Rules) -> Option<WrongDeclaration> {
    let main = model.proto.graph.as_ref()?;
    let mut found = None;
    ScopeFacts::infer(model, main, rules).for_each(main, &mut |scoped| {
        let graph = scoped.graph.proto();
        let mut described = graph.output.iter().chain(&graph.value_info);
        found = found.take().or_else(|| {
            described.find_map(|info| {
                let declared = scoped.facts.declared(info).shape?;
                let inferred = scoped.facts.shape(info.name())?;
                let differs = declared.len() != inferred.len()
                    || declared.iter().zip(inferred).any(|(a, b)| differ(a, b));
                differs.then(|| WrongDeclaration {
                    value: info.name().to_owned(),
                    declared: text(&declared),
                    inferred: text(inferred),
                })
            })
        });
    });
    found
}
