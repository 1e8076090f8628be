//! Redundant channels of the cached rows: channels that are equal to others, and channels that one product computes
//! from fewer inputs than it has outputs.
//!
//! The rows [G*d] of all tokens are then in a subspace, whatever the model's inputs are, and a latent of the dimension
//! of that subspace is exact. It holds each distinct channel once, and for a product with E inputs an orthonormal basis
//! of E columns.

use std::collections::BTreeMap;

use ndarray::{Array2, Array3};

use crate::factor::SideFactors;
use crate::factor::spectral::orthonormal;
use crate::facts::Facts;
use crate::graph::weight::Weight;
use crate::graph::{Graph, NodeId, input_at};
use crate::onnx::stored::Model;
use crate::onnx::tensor_proto::DataType;
use crate::recognize::site::{Fewer, Side};
use crate::weights::columns::{Column, Columns};
use crate::weights::matrix::matrix;

/// Channels of one side that one product with a stored weight computes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ProjectedChannels {
    /// The initializer, [E, any].
    weight: String,
    /// E.
    inputs: usize,
    /// Each distinct channel (the first of its copies) with the column of the weight that computes it.
    channels: Vec<(usize, usize)>,
}

/// The relations between the channels of the rows [G*d] of one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channels {
    /// For each channel, the first channel that is equal to it in every run.
    first: Vec<usize>,
    /// The products with more distinct output channels than inputs.
    narrow: Vec<ProjectedChannels>,
}

impl Channels {
    /// The channels of the new rows of `side`, [B, G, T, d], with G = `kv_heads` and the ONNX element type `elem_type`.
    ///
    /// Products with an orthonormal basis round, while selecting channels does not. In half precision this rounding
    /// would be a loss, so that only equal channels are used there.
    pub fn of(graph: &Graph, facts: &Facts, side: &Side, kv_heads: usize, elem_type: i32) -> Self {
        let mut columns = Columns::new(graph, facts);
        let width = kv_heads * side.size;
        let numbers = columns.of(&side.new, &[1, 3]);
        let numbers = numbers.filter(|n| n.len() == width);
        let numbers = numbers.unwrap_or_else(|| (0..width).collect());
        let mut firsts: BTreeMap<usize, usize> = BTreeMap::new();
        let first = numbers.iter().enumerate();
        let first = first.map(|(channel, n)| *firsts.entry(*n).or_insert(channel));
        let first = first.collect();
        let holds = [DataType::Float, DataType::Double].map(|t| t as i32);
        let narrow = match holds.contains(&elem_type) {
            true => narrow(graph, &columns, &firsts),
            false => Vec::new(),
        };
        Self { first, narrow }
    }

    /// The dimension of the subspace that the rows span: at most G*d.
    pub fn rank(&self) -> usize {
        let own = self.first.iter().enumerate();
        let own = own.filter(|(channel, first)| channel == *first).count();
        let saved = |p: &ProjectedChannels| p.channels.len() - p.inputs;
        own - self.narrow.iter().map(saved).sum::<usize>()
    }

    /// The reason why [`Channels::rank`] is below the number of channels, if it is.
    pub fn fewer(&self) -> Option<Fewer> {
        let copied = self
            .first
            .iter()
            .enumerate()
            .any(|(channel, first)| channel != *first);
        match (copied, self.narrow.is_empty()) {
            (false, true) => None,
            (true, true) => Some(Fewer::Copied),
            (false, false) => Some(Fewer::Projected),
            (true, false) => Some(Fewer::Both),
        }
    }

    /// Whether factors for these channels also hold for `other`, the channels of another branch that fills the same
    /// cache: the same channels are equal, and no weight is involved.
    pub fn is_copies_of(&self, other: &Self) -> bool {
        self == other && self.narrow.is_empty()
    }

    /// Exact factors of rank `rank`, with G = `kv_heads`; latent channels from [`Channels::rank`] on are zero. `None`
    /// if a weight cannot be read.
    pub fn factors(
        &self,
        model: &Model,
        graph: &Graph,
        kv_heads: usize,
        rank: usize,
    ) -> Option<SideFactors> {
        let width = self.first.len();
        let mut down = Array2::zeros((width, rank));
        let mut flat = Array2::zeros((width, rank));
        let is_narrow = |channel: usize| {
            let mut all = self.narrow.iter().flat_map(|p| &p.channels);
            all.any(|(c, _)| *c == channel)
        };
        let mut latent = 0;
        for (channel, first) in self.first.iter().enumerate() {
            if *first == channel && !is_narrow(channel) {
                *down.get_mut((channel, latent))? = 1.0;
                *flat.get_mut((channel, latent))? = 1.0;
                latent += 1;
            }
        }
        for projected in &self.narrow {
            let basis = projected.basis(model, graph)?;
            for ((channel, _), row) in projected.channels.iter().zip(basis.rows()) {
                for (i, x) in row.iter().enumerate() {
                    *down.get_mut((*channel, latent + i))? = *x;
                    *flat.get_mut((*channel, latent + i))? = *x;
                }
            }
            latent += projected.inputs;
        }
        // The up-projection of a copied channel is that of the channel it copies.
        let size = width / kv_heads.max(1);
        let up = Array3::from_shape_fn((kv_heads, size, rank), |(g, i, l)| {
            let first = self.first.get(g * size + i);
            first
                .and_then(|first| flat.get((*first, l)))
                .copied()
                .unwrap_or(0.0)
        });
        Some(SideFactors {
            down,
            up,
            spectrum: Default::default(),
        })
    }
}

/// The products with stored weights that compute more of the distinct channels `firsts` (column number to channel) than
/// they have inputs.
fn narrow(
    graph: &Graph,
    columns: &Columns,
    firsts: &BTreeMap<usize, usize>,
) -> Vec<ProjectedChannels> {
    let mut by_product: BTreeMap<NodeId, Vec<(usize, usize)>> = BTreeMap::new();
    for (number, channel) in firsts {
        if let Some(Column::Projected(product, column)) = columns.known.get(*number) {
            by_product
                .entry(*product)
                .or_default()
                .push((*channel, *column));
        }
    }
    let projected = by_product
        .into_iter()
        .filter_map(|(product, mut channels)| {
            channels.sort_unstable();
            let weight = graph.resolve(input_at(graph.node(product)?, 1)?);
            let inputs = usize::try_from(*graph.initializer(weight)?.dims.first()?).ok()?;
            (inputs < channels.len()).then(|| ProjectedChannels {
                weight: weight.to_owned(),
                inputs,
                channels,
            })
        });
    projected.collect()
}

impl ProjectedChannels {
    /// An orthonormal basis [channels, E] of the product's outputs: Q of the QR decomposition of the weight's columns,
    /// which is orthonormal even if the weight is rank-deficient.
    fn basis(&self, model: &Model, graph: &Graph) -> Option<Array2<f64>> {
        let weight = matrix(model, &Weight::of(graph, &self.weight)?, false)?;
        let columns: Vec<usize> = self.channels.iter().map(|(_, column)| *column).collect();
        let fits = columns.iter().all(|c| *c < weight.ncols()) && weight.nrows() == self.inputs;
        let rows = fits.then(|| weight.select(ndarray::Axis(1), &columns).reversed_axes())?;
        orthonormal(&rows)
    }
}
