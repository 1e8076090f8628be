//! One attention in its graph: queries about its rotation, scoring and weights.

use std::cell::OnceCell;
use std::sync::Arc;

use ndarray::Array2;

use crate::analysis::identity::SiteId;
use crate::analysis::placed::PlacedSite;
use crate::factor::moments::value_readers;
use crate::factor::readers::Readers;
use crate::factor::rope::Rope;
use crate::factor::weights_only;
use crate::factor::{Moments, Ranks, SideFactors, SideMoments};
use crate::facts::Facts;
use crate::graph::Graph;
use crate::graph::scopes::Scope;
use crate::onnx::stored::Model;
use crate::recognize::rotation::fingerprint::fingerprint;
use crate::recognize::rotation::{Rotated, query_rotation, rotation};
use crate::recognize::scoring::{Scoring, scoring};
use crate::recognize::site::{Side, Site};
use crate::weights::channels::Channels;
use crate::weights::frequencies::rope;
use crate::weights::output_projection::output_projection;
use crate::weights::projection::projection;

/// An attention with its graph, the facts of that graph and the model's weights.
pub struct SiteView<'v> {
    /// The model.
    pub model: &'v Model,
    /// The graph of the attention.
    pub graph: &'v Graph<'v>,
    /// The facts of the graph's values.
    pub facts: &'v Arc<Facts>,
    /// The attention and its scope.
    pub placed: &'v PlacedSite,
    /// The attentions of the graph that read the same cache, this one included.
    readers: Vec<&'v PlacedSite>,
    rotated: OnceCell<Rotated>,
}

impl<'v> SiteView<'v> {
    /// A view of `placed`, an attention of `graph`, which belongs to `model` and has the facts `facts`; `readers` are the
    /// attentions of the graph that read its cache, itself included.
    pub fn new(
        model: &'v Model,
        (graph, facts): (&'v Graph<'v>, &'v Arc<Facts>),
        placed: &'v PlacedSite,
        readers: Vec<&'v PlacedSite>,
    ) -> Self {
        Self {
            model,
            graph,
            facts,
            placed,
            readers,
            rotated: OnceCell::new(),
        }
    }

    /// The attention.
    pub fn site(&self) -> &'v Site {
        &self.placed.site
    }

    /// The unique name of the attention in its model.
    pub fn id(&self) -> &'v SiteId {
        &self.placed.id
    }

    /// The number of rows of the past, if every run has the same and the caller keeps them: not that of a static cache, nor of
    /// a past that is always empty.
    pub fn constant_past(&self) -> Option<i64> {
        let site = self.site();
        let cache = site
            .key
            .cache
            .as_ref()
            .filter(|_| !site.has_static_cache())?;
        let axis = if cache.packed.is_some() { 1 } else { 2 };
        let rows = self.facts.shape(cache.past.as_ref()?)?.get(axis)?.as_i64();
        rows.filter(|&rows| rows > 0)
    }

    /// Whether the attention is in the main graph, not in a branch or loop.
    pub fn is_in_main_graph(&self) -> bool {
        self.placed.scope == Scope::default()
    }

    /// The attentions of the graph that read the same cache, in their order, this one included.
    pub fn readers(&self) -> impl Iterator<Item = &'v Site> {
        self.readers.iter().map(|placed| &placed.site)
    }

    /// The query heads of all of them.
    pub fn reading_heads(&self) -> Readers {
        let heads = self.readers().map(|site| site.heads).collect();
        Readers::new(heads, self.site().kv_heads)
    }

    /// The layers of the other attentions that read the same cache.
    pub fn sharing_layers(&self) -> Vec<usize> {
        let layers = self.readers().map(|site| site.layer);
        layers.filter(|&l| l != self.site().layer).collect()
    }

    /// Scale and softcap between the score product and the softmax; `None` if other operators are there.
    pub fn scoring(&self) -> Option<Scoring> {
        scoring(self.graph, self.facts, self.site())
    }

    /// The same where it holds for all attentions that read the cache: with a softcap where one of them has one; `None` where
    /// it is not known of one of them.
    pub fn shared_scoring(&self) -> Option<Scoring> {
        let all = self.readers().map(|s| scoring(self.graph, self.facts, s));
        let all = all.collect::<Option<Vec<Scoring>>>()?.into_iter();
        all.reduce(|first, other| match first.ignores_shifts() {
            true if !other.ignores_shifts() => other,
            _ => first,
        })
    }

    /// The rotation (RoPE) of the keys.
    pub fn rotation(&self) -> &Rotated {
        self.rotated
            .get_or_init(|| rotation(self.graph, self.facts, self.site()))
    }

    /// The rotation (RoPE) of the queries.
    pub fn query_rotation(&self) -> Rotated {
        query_rotation(self.graph, self.facts, self.site())
    }

    /// A text that is equal for equal rotations of keys; `None` if the rotation is not recognised.
    pub fn rotation_fingerprint(&self) -> Option<String> {
        fingerprint(self.graph, self.facts, self.rotation())
    }

    /// W_O [H*dv, E]; `None` if the outputs are not projected by a `MatMul` or `Gemm` with a stored weight.
    pub fn output_projection(&self) -> Option<Array2<f64>> {
        output_projection(self.model, self.graph, self.facts, self.site())
    }

    /// Weights of errors in the values, one [dv, dv] per KV head: the sum of W_O,h W_O,hᵀ over the heads h of the group in all
    /// attentions that read the cache; `None` if one of them has no known W_O.
    pub fn value_weight(&self) -> Option<Vec<Array2<f64>>> {
        sum_by_head(self.readers().map(|site| {
            let w_o = output_projection(self.model, self.graph, self.facts, site)?;
            Some(value_readers(&w_o, site.heads, site.kv_heads))
        }))
    }

    /// Second moments of keys, values and queries for factors of `ranks`, computed from the projection weights under
    /// the assumption of white layer inputs (identity covariance). Moments of rotated keys are averaged over the
    /// positions 0 to `context`. Without a stored projection weight, the identity is used.
    pub fn weight_moments(&self, ranks: Ranks, context: usize) -> Moments {
        let site = self.site();
        let lossy = ranks.key < site.kv_heads * site.key.size;
        let rope = lossy.then(|| self.rope()).flatten();
        let weight = |value: &str, width: usize| {
            projection(self.model, self.graph, self.facts, value, width)
        };
        // At full rank the factors are identities, and no statistics are needed.
        let side = |side: &Side, rank: usize| {
            let width = site.kv_heads * side.size;
            let known = (rank < width).then(|| weight(&side.new, width)).flatten();
            match known {
                Some(weight) => weights_only::white_input(&weight),
                None => SideMoments::white(width),
            }
        };
        let mut key = side(&site.key, ranks.key);
        let mut value = side(&site.value, ranks.value);
        if lossy {
            if let Some(rope) = &rope {
                key.cached = rope.mean_square(&key.cached, context);
            }
            key.weight = sum_by_head(self.readers().map(|reader| {
                let (heads, groups) = (reader.heads, reader.kv_heads);
                let w_q = weight(&reader.query, heads * reader.key.size)?;
                let rope = rope.as_ref();
                Some(weights_only::readers_of_keys(
                    &w_q, heads, groups, rope, context,
                ))
            }));
        }
        if ranks.value < value.cached.nrows() {
            value.weight = self.value_weight();
        }
        Moments {
            key,
            value,
            mean_output: None,
        }
    }

    /// Exact factors of rank `rank` for `side`; `None` if `rank` is below the rank of its rows ([`Side::rank`]), or not
    /// below the number of channels.
    pub fn lossless(&self, side: &Side, rank: usize) -> Option<SideFactors> {
        let site = self.site();
        let width = site.kv_heads * side.size;
        if rank >= width || rank < side.rank {
            return None;
        }
        let (groups, elem_type) = (site.kv_heads, site.elem_type);
        let channels = Channels::of(self.graph, self.facts, side, groups, elem_type);
        channels.factors(self.model, self.graph, groups, rank)
    }

    /// The frequencies and factors of the keys' RoPE; `None` if they do not follow from constants of the graph.
    pub fn rope(&self) -> Option<Rope> {
        let size = self.site().key.size;
        rope(self.model, self.graph, self.facts, self.rotation(), size)
    }
}

/// The sums of one matrix for each KV head over several attentions; `None` if one of them has none.
fn sum_by_head(
    mut of_readers: impl Iterator<Item = Option<Vec<Array2<f64>>>>,
) -> Option<Vec<Array2<f64>>> {
    let mut sums = of_readers.next()??;
    for own in of_readers {
        for (sum, own) in sums.iter_mut().zip(own?) {
            *sum += &own;
        }
    }
    Some(sums)
}
