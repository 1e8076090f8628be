//! The model input of token ids, whose sizes are the batch and the number of new tokens.

use crate::facts::Facts;
use crate::forms::builder::Builder;
use crate::graph::build::node;
use crate::graph::{Graph, input_at, output_at};
use crate::recognize::site::Site;

/// The model input whose axis 0 is the batch and whose axis 1 has the length T, such as `input_ids`. Of several, one that is
/// embedded counts before others: exporters give masks of all tokens this length too.
pub fn tokens<'g>(graph: &Graph<'g>, facts: &Facts, site: &Site) -> Option<&'g str> {
    let first = || of_new_tokens(graph, facts, site).next();
    embedded(graph, facts, site).or_else(first)
}

/// The model input of token ids that select rows of a table, or of embeddings [B, T, E].
fn embedded<'g>(graph: &Graph<'g>, facts: &Facts, site: &Site) -> Option<&'g str> {
    let is_embedding = |input: &str| facts.shape(input).is_some_and(|shape| shape.len() == 3);
    of_new_tokens(graph, facts, site)
        .find(|input| is_embedding(input) || selects_rows(graph, input))
}

fn of_new_tokens<'g>(
    graph: &Graph<'g>,
    facts: &Facts,
    site: &Site,
) -> impl Iterator<Item = &'g str> {
    let new = facts.shape(&site.key.new).unwrap_or_default();
    let fits = |input: &&str| {
        let shape = facts.shape(input).filter(|shape| shape.len() < new.len());
        let sizes = shape.map(|s| (s.first(), s.get(1)));
        sizes.is_some_and(|sizes| sizes == (new.first(), new.get(2)))
    };
    graph.reachable_inputs().filter(fits)
}

/// Whether `value`, as it is or converted to another type, gives the rows that a `Gather` of any domain selects.
fn selects_rows(graph: &Graph, value: &str) -> bool {
    let mut readers = graph.uses(value).iter().filter_map(|u| graph.node(u.node));
    readers.any(|n| match n.op_type() {
        "Gather" | "GatherBlockQuantized" => input_at(n, 1) == Some(value),
        "Cast" | "Identity" => output_at(n, 0).is_some_and(|same| selects_rows(graph, same)),
        _ => false,
    })
}

impl Builder<'_> {
    /// The batch (`axis` 0) or the number of new tokens (1) as a scalar, which all attentions share. `None` if the model has
    /// no input of tokens.
    pub fn token_size(&mut self, axis: i64) -> Option<String> {
        let tokens = tokens(self.graph, self.facts(), self.site)?;
        Some(self.size_of(tokens, axis))
    }

    /// The number of new tokens as a scalar, which all attentions share. `None` if no input is known to be that of tokens.
    pub fn embedded_tokens(&mut self) -> Option<String> {
        let tokens = embedded(self.graph, self.facts(), self.site)?;
        Some(self.size_of(tokens, 1))
    }

    fn size_of(&mut self, input: &str, axis: i64) -> String {
        // The branches of an `If` may have attentions beside those of the main graph, and define no name again.
        let of = match self.site.within {
            None => format!("mla/tokens/{input}"),
            Some(_) => self.name("tokens"),
        };
        let part = if axis == 0 { "B" } else { "T" };
        let (shape, size) = (format!("{of}/shape"), format!("{of}/{part}"));
        let shape = self.shared(node("Shape", &shape, &[input], &[&shape]));
        let axis = self.scalar(axis);
        self.shared(node("Gather", &size, &[&shape, &axis], &[&size]))
    }
}
