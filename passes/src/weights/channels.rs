//! Channels of the cached rows that say nothing new: copies of others, and projections of fewer numbers than they are.
//!
//! The rows [G*d] of a token then stay within a subspace whatever the model is fed, and a latent as wide as the subspace
//! holds them without loss: each channel once that others copy, and a basis of what one product makes of E numbers.

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

/// The channels of one side that are made by one product with a stored weight.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ProjectedChannels {
    /// The initializer, [E, any].
    weight: String,
    /// E.
    inputs: usize,
    /// A channel, the first of its copies, and the column of the weight that makes it.
    channels: Vec<(usize, usize)>,
}

/// What the channels of the rows [G*d] of one side have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Channels {
    /// For each channel the first one that is equal to it in every run.
    first: Vec<usize>,
    /// Products that make more channels than they have inputs.
    narrow: Vec<ProjectedChannels>,
}

impl Channels {
    /// The channels of the new rows of `side`, [B, G, T, d] with G `kv_heads` of the ONNX element type `elem_type`.
    ///
    /// A basis is no selection, so that products with it round. Half precision would lose there what single precision does
    /// not, and only copies count in it.
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

    /// The number of directions that the rows take: G*d at most.
    pub fn rank(&self) -> usize {
        let own = self.first.iter().enumerate();
        let own = own.filter(|(channel, first)| channel == *first).count();
        let saved = |p: &ProjectedChannels| p.channels.len() - p.inputs;
        own - self.narrow.iter().map(saved).sum::<usize>()
    }

    /// Why there are fewer directions than channels, if there are.
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

    /// Whether the first of two branches that fill one cache may stand for the other: what is equal in one is equal in the
    /// other, and no weight is looked at.
    pub fn is_copies_of(&self, other: &Self) -> bool {
        self == other && self.narrow.is_empty()
    }

    /// Factors of rank `rank` that lose nothing of G `kv_heads`; latent channels beyond [`Channels::rank`] are zero. `None`
    /// where a weight cannot be read.
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
        // A copy is rebuilt as the channel that it copies.
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

/// The products with stored weights among `columns` that make more of the channels in `firsts`, by the numbers of their
/// columns, than they have inputs.
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
    /// An orthonormal basis [channels, E] of what the product makes: the Q of the QR decomposition of its weight's
    /// columns, which is orthonormal whatever the rank of the weight.
    fn basis(&self, model: &Model, graph: &Graph) -> Option<Array2<f64>> {
        let weight = matrix(model, &Weight::of(graph, &self.weight)?, false)?;
        let columns: Vec<usize> = self.channels.iter().map(|(_, column)| *column).collect();
        let fits = columns.iter().all(|c| *c < weight.ncols()) && weight.nrows() == self.inputs;
        let rows = fits.then(|| weight.select(ndarray::Axis(1), &columns).reversed_axes())?;
        orthonormal(&rows)
    }
}
