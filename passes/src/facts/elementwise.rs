//! Shape inference of element-wise operators with broadcasting.

use tract_data::prelude::TDim;

use crate::facts::content::{self, Content};
use crate::facts::{Fact, Facts, shapes};

/// The fact of the output of the element-wise operator `op`; vectors and scalars are folded.
pub fn elementwise(facts: &Facts, op: &str, elem_type: Option<i32>, inputs: &[&Fact]) -> Fact {
    let known: Option<Vec<&[TDim]>> = inputs.iter().map(|f| f.shape.as_deref()).collect();
    let shape = known.map(|shapes| shapes::filled(shapes::broadcast(&shapes), || facts.fresh()));
    let flat = shape.as_ref().is_some_and(|s| s.len() <= 1);
    let content = match inputs {
        [a, b] if flat => a
            .content
            .as_ref()
            .zip(b.content.as_ref())
            .and_then(|(a, b)| content::binary(op, elem_type, a, b)),
        _ => None,
    };
    Fact::new(elem_type, shape).holding(content)
}

/// The result of `Where` on known integers.
pub fn choose(condition: &Fact, yes: &Fact, no: &Fact) -> Option<Content> {
    let (Content::Ints(condition), Content::Ints(yes), Content::Ints(no)) = (
        condition.content.as_ref()?,
        yes.content.as_ref()?,
        no.content.as_ref()?,
    ) else {
        return None;
    };
    let count = condition.len().max(yes.len()).max(no.len());
    let at = |v: &[TDim], i: usize| match v.len() {
        1 => v.first().cloned(),
        n if n == count => v.get(i).cloned(),
        _ => None,
    };
    (0..count)
        .map(|i| match at(condition, i)?.as_i64()? {
            0 => at(no, i),
            _ => at(yes, i),
        })
        .collect::<Option<_>>()
        .map(Content::Ints)
}
