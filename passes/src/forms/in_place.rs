//! The append of new rows to a cache: by `Concat`, or by writing into a shared buffer (in place).
//!
//! ```text
//! append     present [B, 1, S, r] = Concat(past [B, 1, P, r], new)
//! in place   present [B, 1, S, r] = ScatterND(past [B, 1, S, r], rows, new)       rows [B, 1, T, 3]: (b, 0, t - T)
//! ```
//!
//! In place, the past input has space for the new rows after the P past rows. ONNX Runtime copies the data input of
//! `ScatterND` to its output unless both are the same buffer. They are if the caller binds past and present to the same
//! memory; otherwise the result is the same, at the cost of a copy. Indices count from the end of the buffer, so that
//! they depend only on the shape of the token input and all caches share them. Nodes that read the length of a past get
//! S - T instead of S.
//!
//! A static cache is written in place already. Its `TensorScatter` is kept, with latent rows in place of the heads.

use crate::analysis::SiteView;
use crate::facts::Facts;
use crate::forms::builder::Builder;
use crate::forms::join::Join;
use crate::forms::tokens::tokens;
use crate::forms::{Form, FormError};
use crate::graph::build::node;
use crate::graph::{Graph, NodeId, label};
use crate::onnx::NodeProto;
use crate::recognize::append::CacheKind;
use crate::recognize::shape_reader::{ShapeReader, shape_readers};
use crate::recognize::site::{Cache, Side};

/// The dimension name of the length S of pasts and presents that share a buffer.
const LENGTH: &str = "past_and_new_tokens";

/// Whether new rows have an axis of heads.
#[derive(Debug, Clone, Copy)]
enum Heads {
    None,
    One,
}

/// Checks whether the cache of an attention can be written in place in `form`.
///
/// # Errors
/// [`FormError`] with the reason, and what the user can do.
pub fn check(view: &SiteView, form: &dyn Form) -> Result<(), FormError> {
    let refused = |why: &str, instead: &str| {
        let text = format!("its cache cannot be written in place: {why}; {instead}");
        Err(FormError::Refused(text))
    };
    if let Some((why, instead)) = form.hinders_in_place() {
        return refused(why, instead);
    }
    let (site, graph) = (view.site(), view.graph);
    if let Some(within) = &site.within {
        let why = format!("it stands in {within}, which copies what it returns");
        let instead =
            "export the decoder with a past by itself, without merging, or use --cache-io append";
        return refused(&why, instead);
    }
    if site.has_static_cache() {
        return Ok(());
    }
    if let Some(rows) = view.constant_past() {
        let why = format!(
            "its past has {rows} rows in every run, and the caller keeps the last {rows} of the present"
        );
        return refused(&why, "use --cache-io append");
    }
    let sides = [&site.key, &site.value];
    for cache in sides.map(|side| side.cache.as_ref()) {
        let Some((cache, past)) = cache.and_then(|c| Some((c, c.past.as_deref()?))) else {
            let why = "the model has no past behind which it could be written";
            return refused(why, "export it with one, or use --cache-io append");
        };
        let mut passing = cache.received.iter().chain(&cache.returned);
        if let Some((_, passed)) = passing.find_map(|value| graph.producer(value)) {
            let (op, name) = (passed.op_type(), label(passed));
            let why =
                format!("{op} '{name}' copies it between the attention and the model's interface");
            return refused(
                &why,
                "export the model without it, or use --cache-io append",
            );
        }
        if let Err(reader) = measured(graph, view.facts, past) {
            let name = graph.node(reader).map_or("", label);
            let why = format!("Shape '{name}' asks '{past}' for a size that is not known");
            return refused(&why, "use --cache-io append");
        }
    }
    match tokens(graph, view.facts, site) {
        Some(_) => Ok(()),
        None => refused(
            "no input of the model is declared with the batch and the number of new tokens that it takes",
            "name them in input_ids as in the caches, or use --cache-io append",
        ),
    }
}

/// The `Shape` nodes that read the length of `past`.
///
/// # Errors
/// The first such node that also reads a size which is not known.
fn measured(graph: &Graph, facts: &Facts, past: &str) -> Result<Vec<ShapeReader>, NodeId> {
    shape_readers(graph, facts, past, past, false).map_err(|(reader, _)| reader)
}

impl Builder<'_> {
    /// The node that computes all rows of `cache` from `past` and the new rows `new`: [B, 1, T, r], or [B, T, r] if the
    /// cache has the heads on one axis.
    pub fn join(&mut self, cache: &Cache, past: &str, new: &str) -> NodeProto {
        let replaced = self.graph.node(cache.append);
        let name = replaced.map_or("", NodeProto::name).to_owned();
        match (cache.kind, self.layout.join) {
            (CacheKind::Growing, Join::Append) => {
                node("Concat", &name, &[past, new], &[&cache.joined]).with_int("axis", 2)
            }
            (CacheKind::Growing, Join::InPlace) => {
                let rows = self.last_rows(Heads::One);
                node("ScatterND", &name, &[past, &rows, new], &[&cache.joined])
            }
            (CacheKind::Static, _) => {
                let mut write = replaced.cloned().unwrap_or_default();
                if let Some(rows) = write.input.get_mut(1) {
                    new.clone_into(rows);
                }
                write
            }
        }
    }

    /// Whether the rewrite writes the new rows of `cache` into the past, which the exporter's graph does not.
    pub fn appends_in_place(&self, cache: &Cache) -> bool {
        (cache.kind, self.layout.join) == (CacheKind::Growing, Join::InPlace)
    }

    /// The same as [`Self::join`] for new rows [B, T, r] of a cache that is written in place.
    pub fn written(&mut self, cache: &Cache, past: &str, new: &str) -> NodeProto {
        let replaced = self.graph.node(cache.append);
        let name = replaced.map_or("", NodeProto::name).to_owned();
        let rows = self.last_rows(Heads::None);
        node("ScatterND", &name, &[past, &rows, new], &[&cache.joined])
    }

    /// The new dimension name for the length of the past of `cache`, if the join changes that length.
    pub fn own_length(&self, cache: &Cache) -> Option<&'static str> {
        let grows = cache.past.is_some() && cache.kind == CacheKind::Growing;
        (self.layout.join == Join::InPlace && grows).then_some(LENGTH)
    }

    /// The length P of the past, from `length` [1], the size of `value` on the sequence axis. If `value` is a past with
    /// space for new rows, this is `length` - T, computed by the returned node, whose output is named `part`; otherwise
    /// no node is needed.
    pub fn without_room(
        &mut self,
        value: &str,
        length: &str,
        part: &str,
    ) -> (Option<NodeProto>, String) {
        let sides = [&self.site.key, &self.site.value];
        let caches = sides.into_iter().filter_map(|side| side.cache.as_ref());
        let mut growing = caches.filter(|cache| cache.kind == CacheKind::Growing);
        let is_past = growing.any(|cache| cache.past.as_deref() == Some(value));
        if self.layout.join == Join::Append || !is_past {
            return (None, length.to_owned());
        }
        let ([_, tokens], first) = (self.sizes_of_tokens(), self.vector(&[0]));
        let new = self.in_front("Unsqueeze", "T/vector", &[&tokens, &first]);
        (
            Some(node("Sub", part, &[length, &new], &[part])),
            part.to_owned(),
        )
    }

    /// The `Shape` nodes that read a past and must be replaced.
    pub fn past_readers(&self) -> Vec<ShapeReader> {
        let sides = [&self.site.key, &self.site.value];
        let has_room = self.layout.join == Join::InPlace && !self.site.has_static_cache();
        let readers = sides.into_iter().map(|side| match has_room {
            false => self.readers_of_heads(side),
            true => self.readers_of_lengths(side),
        });
        readers.flatten().collect()
    }

    /// The `Shape` nodes that read a size of the past of `side` which differs for latents: the number of heads or the
    /// head size.
    fn readers_of_heads(&self, side: &Side) -> Vec<ShapeReader> {
        let pasts = side.cache.iter();
        let pasts: Vec<&String> = pasts
            .flat_map(|c| c.past.iter().chain(&c.received))
            .collect();
        let asks_a_past = |reader: &&ShapeReader| {
            let node = self.graph.node(reader.node);
            let asked = node.and_then(|n| n.input.first());
            asked.is_some_and(|value| pasts.contains(&value))
        };
        let readers = side.shape_readers.iter().filter(asks_a_past);
        readers.cloned().collect()
    }

    /// The `Shape` nodes that read the length of the past of `side`. If one cannot be replaced, [`check`] refuses the
    /// model.
    fn readers_of_lengths(&self, side: &Side) -> Vec<ShapeReader> {
        let past = side.cache.as_ref().and_then(|c| c.past.as_deref());
        let readers = past.map(|past| measured(self.graph, self.before, past));
        readers.and_then(Result::ok).unwrap_or_default()
    }

    /// The indices [B, T, 3] or, with an axis of one head, [B, 1, T, 3] of the last T rows of every sequence: sequence b, head 0,
    /// row t - T.
    fn last_rows(&mut self, heads: Heads) -> String {
        let (axes, between): (&[i64], &str) = match heads {
            Heads::None => (&[], ""),
            Heads::One => (&[1], "1"),
        };
        let shape = |first: i64, middle: &[i64], rest: &[i64]| [&[first], middle, rest].concat();
        let [zero, one] = [0, 1].map(|n| self.scalar(n));
        let [batch, tokens] = self.sizes_of_tokens();
        let first = self.in_front("Neg", "first", &[&tokens]);
        let rows = self.in_front("Range", "rows_T", &[&first, &zero, &one]);
        let sequences = self.in_front("Range", "sequences_B", &[&zero, &batch, &one]);
        let axis = self.vector(&shape(1, axes, &[-1, 1]));
        let rows = self.in_front("Reshape", &format!("rows_1{between}T1"), &[&rows, &axis]);
        let axis = self.vector(&shape(-1, axes, &[1, 1]));
        let sequences = self.in_front(
            "Reshape",
            &format!("sequences_B{between}11"),
            &[&sequences, &axis],
        );
        let place = self.vector(&[0, 0, 1]);
        let rows = self.in_front("Mul", &format!("rows_1{between}T3"), &[&rows, &place]);
        let place = self.vector(&[1, 0, 0]);
        let sequences = self.in_front(
            "Mul",
            &format!("sequences_B{between}13"),
            &[&sequences, &place],
        );
        self.in_front("Add", &format!("rows_B{between}T3"), &[&sequences, &rows])
    }

    /// The batch and the number of new tokens. [`check`] refuses models without an input of tokens.
    fn sizes_of_tokens(&mut self) -> [String; 2] {
        [0, 1].map(|axis| self.token_size(axis).unwrap_or_default())
    }

    /// The output of a node that is placed before all others and shared by all attentions.
    fn in_front(&mut self, op: &str, part: &str, inputs: &[&str]) -> String {
        let name = format!("mla/in_place/{part}");
        self.shared(node(op, &name, inputs, &[&name]))
    }
}
