//! One attention as a factorization sees it.

use std::error::Error;

use ndarray::Array2;

use crate::factor::moments::value_readers;
use crate::factor::rope::Rope;
use crate::factor::weights_only;
use crate::factor::{Made, Moments, Ranks, SideMoments, factor};
use crate::facts::Facts;
use crate::graph::Graph;
use crate::onnx::stored::Model;
use crate::recognize::rotation::{Rotated, rotation};
use crate::recognize::scoring::{Scoring, scoring};
use crate::recognize::site::{Side, Site};
use crate::weights::frequencies::rope;
use crate::weights::output_projection::output_projection;
use crate::weights::projection::projection;

/// An attention that is about to be rewritten: what a factorization can ask of it.
pub struct Layer<'l> {
    /// Its model.
    pub model: &'l Model,
    /// The graph it stands in.
    pub graph: &'l Graph<'l>,
    /// What is known of the graph's values.
    pub facts: &'l Facts,
    /// The attention.
    pub site: &'l Site,
    /// Names it among those of its model.
    pub id: &'l str,
    /// The latent widths to make factors for.
    pub ranks: Ranks,
    /// Positions over which the moments of rotated keys and queries are averaged.
    pub context: usize,
}

/// Makes the factors of one attention.
pub type Factorize<'f> = dyn FnMut(&Layer) -> Result<Made, Box<dyn Error + Send + Sync>> + 'f;

/// Factors from the weights alone: principal components of the projections.
pub fn by_weights(layer: &Layer) -> Result<Made, Box<dyn Error + Send + Sync>> {
    Ok(Made::Latent(factor(
        &layer.weight_moments(),
        layer.site.kv_heads,
        layer.ranks,
    )?))
}

impl Layer<'_> {
    /// What happens to the scores, where that is plain.
    pub fn scoring(&self) -> Option<Scoring> {
        scoring(self.graph, self.facts, self.site)
    }

    /// How its keys are rotated.
    pub fn rotation(&self) -> Rotated {
        rotation(self.graph, self.facts, self.site)
    }

    /// W_O [H*dv, E], where it is plainly there.
    pub fn output_projection(&self) -> Option<Array2<f64>> {
        output_projection(self.model, self.graph, self.facts, self.site)
    }

    /// Moments from the weights; where a projection is not plainly there, every direction counts alike.
    pub fn weight_moments(&self) -> Moments {
        let site = self.site;
        let lossy = self.ranks.key < site.kv_heads * site.key.size;
        let rope = lossy.then(|| self.rope()).flatten();
        let weight = |value: &str, width: usize| {
            projection(self.model, self.graph, self.facts, value, width)
        };
        // At full rank channels stay as they are, and nothing has to be known of them.
        let side = |side: &Side, rank: usize| {
            let width = site.kv_heads * side.size;
            let known = (rank < width).then(|| weight(&side.new, width)).flatten();
            match known {
                Some(weight) => weights_only::white_input(&weight),
                None => SideMoments::white(width),
            }
        };
        let mut key = side(&site.key, self.ranks.key);
        let mut value = side(&site.value, self.ranks.value);
        if lossy {
            if let Some(rope) = &rope {
                key.cached = rope.mean_square(&key.cached, self.context);
            }
            let queries = weight(&site.query, site.heads * site.key.size);
            key.weight = queries.map(|w| {
                let groups = site.kv_heads;
                weights_only::readers_of_keys(&w, site.heads, groups, rope.as_ref(), self.context)
            });
        }
        if self.ranks.value < value.cached.nrows() {
            let readers = self.output_projection();
            value.weight = readers.map(|w| value_readers(&w, site.heads, site.kv_heads));
        }
        Moments {
            key,
            value,
            mean_output: None,
        }
    }

    /// The rotation of the keys in numbers, where the graph tells it.
    fn rope(&self) -> Option<Rope> {
        let size = self.site.key.size;
        rope(self.model, self.graph, self.facts, &self.rotation(), size)
    }
}
