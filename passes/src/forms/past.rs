//! The past of a step: its length, and whether there is one. All rewritten caches of one declared shape have pasts of one length, so
//! that nodes in front of all others measure the first of them for all attentions.

use crate::facts::Facts;
use crate::forms::builder::Builder;
use crate::forms::join::Join;
use crate::forms::layout::Layout;
use crate::graph::build::node;
use crate::onnx::NodeProto;

/// The measures of a past, each a scalar that a node computes.
pub struct Past {
    /// The nodes that have no place yet; empty if all stand in front.
    pub nodes: Vec<NodeProto>,
    /// What the names of nodes in front begin with; `None` if the nodes belong to one attention.
    front: Option<String>,
    /// The length of the past; in place, that of past and new rows.
    rows: String,
}

impl Builder<'_> {
    /// Measures `past` [B, 1, P, r], or [B, 1, P + T, r] in place.
    pub fn past(&mut self, past: &str) -> Past {
        let alike =
            first_alike(self.layout, self.before, past).filter(|_| self.site.within.is_none());
        let mut measures = Past {
            nodes: Vec::new(),
            front: alike.map(|input| format!("mla/past/{input}")),
            rows: String::new(),
        };
        let axis = self.scalar(2);
        let shape = self.measure(&mut measures, "Shape", "shape", &[alike.unwrap_or(past)]);
        measures.rows = self.measure(&mut measures, "Gather", "rows", &[&shape, &axis]);
        measures
    }

    /// Whether there is no past, P = 0.
    pub fn no_past(&mut self, past: &mut Past) -> String {
        let none = self.scalar(0);
        let length = match self.layout.join {
            Join::Append => past.rows.clone(),
            Join::InPlace => {
                let (rows, new) = (past.rows.clone(), self.token_size(1).unwrap_or_default());
                self.measure(past, "Sub", "length", &[&rows, &new])
            }
        };
        self.measure(past, "Equal", "none", &[&length, &none])
    }

    /// Whether there is a past and one new token. `tokens` is the number of new tokens, `no_past` the result of
    /// [`Self::no_past`].
    pub fn one_later_token(&mut self, past: &mut Past, tokens: &str, no_past: &str) -> String {
        let one = self.scalar(1);
        let alone = self.measure(past, "Equal", "one_token", &[tokens, &one]);
        let some = self.measure(past, "Not", "some", &[no_past]);
        self.measure(past, "And", "one_later_token", &[&alone, &some])
    }

    /// The number S of cached rows after a step of `tokens` new tokens.
    pub fn cached_rows(&mut self, past: &mut Past, tokens: &str) -> String {
        let rows = past.rows.clone();
        match self.layout.join {
            Join::Append => self.measure(past, "Add", "cached_rows", &[&rows, tokens]),
            Join::InPlace => rows,
        }
    }

    /// The output of a node of the operator `op`, in front of all others if it is the same for all attentions.
    pub fn measure(&mut self, past: &mut Past, op: &str, part: &str, inputs: &[&str]) -> String {
        let made = self.measured(past, op, part, inputs);
        self.place_measure(past, made)
    }

    /// `value` in the element type `elem_type`, by a node as those of [`Self::measure`].
    pub fn measure_as(
        &mut self,
        past: &mut Past,
        elem_type: i32,
        part: &str,
        value: &str,
    ) -> String {
        let cast = self.measured(past, "Cast", part, &[value]);
        self.place_measure(past, cast.with_int("to", elem_type.into()))
    }

    fn measured(&self, past: &Past, op: &str, part: &str, inputs: &[&str]) -> NodeProto {
        let name = match &past.front {
            Some(front) => format!("{front}/{part}"),
            None => self.name(&format!("past/{part}")),
        };
        node(op, &name, inputs, &[&name])
    }

    fn place_measure(&mut self, past: &mut Past, made: NodeProto) -> String {
        if past.front.is_some() {
            return self.shared(made);
        }
        let name = made.name().to_owned();
        past.nodes.push(made);
        name
    }
}

/// The first past that has the declared shape of the input `past`, and so its length; `None` if `past` is another value.
fn first_alike<'l>(layout: &'l Layout, facts: &Facts, past: &str) -> Option<&'l str> {
    let mut pasts = layout.pasts.iter().map(String::as_str);
    let own = pasts.clone().find(|input| *input == past)?;
    let shape = facts.shape(own)?;
    pasts.find(|input| facts.shape(input) == Some(shape))
}
