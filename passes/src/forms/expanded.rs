//! The expanded form: the cache holds latents of unrotated keys and of values, and keys are rebuilt from them.
//!
//! ```text
//! c_k = x W_a          W_a = W_K w_dk; cached in place of the rotated keys
//! K = rotate(C_k w_uk, positions 0..S)          all positions at every step
//! score_h = q_h . K_j                           j = floor(h / s)
//! c_v = x W_a'         W_a' = W_V w_dv; cached
//! out_h = (p_h C_v) w_uv[j]                     as in the absorbed form, because values are not rotated
//! ```
//!
//! (TransMLA, arXiv 2502.07864, figure 1c.) If unrotated keys or values are not a plain projection of the layer input
//! (normalized or quantized, for example), the projection is kept and w_dk or w_dv is applied to its result. The s query
//! heads of a group are the rows of one product with its keys, which are not repeated. If every query head has factors of
//! its own, K has H heads. Positions of cached rows are computed from the mask, or are their indices; without a cache all
//! rows are new and have the positions of the original.

use ndarray::Array3;

use crate::analysis::SiteView;
use crate::factor::{CacheBits, Made, Ranks};
use crate::forms::builder::Builder;
use crate::forms::folded::Projections;
use crate::forms::layout::Layout;
use crate::forms::names::SiteNames;
use crate::forms::{CachedKeys, Form, FormError, Hindrance, Rounds};
use crate::graph::build::node;
use crate::graph::patch::Patch;
use crate::onnx::NodeProto;
use crate::recognize::rotation::{Rotated, Rotation};
use crate::recognize::site::Side;

/// The form `expanded`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expanded;

impl Form for Expanded {
    fn name(&self) -> &'static str {
        "expanded"
    }

    fn cached_keys(&self) -> CachedKeys {
        CachedKeys::Unrotated
    }

    fn hinders_in_place(&self) -> Option<Hindrance> {
        None
    }

    fn hinders_per_head(&self) -> Option<Hindrance> {
        None
    }

    fn rounds(&self) -> Rounds {
        Rounds::AboutZero
    }

    fn check(&self, view: &SiteView, _: Ranks) -> Result<(), FormError> {
        known_rotation(view).map(|_| ())
    }

    /// The initializers of the absorbed form, but `w_uk` is [G, r, d], or [r, G*d] if heads are split after the
    /// rotation (H in place of G if every query head has factors of its own). `w_ak` [E, r] and `w_av` [E, r], with biases,
    /// replace w_dk and w_dv if a projection is folded.
    fn layout(
        &self,
        view: &SiteView,
        factors: &Made,
        names: &SiteNames,
    ) -> Result<Layout, FormError> {
        let (site, rounding) = (view.site(), factors.rounding());
        let factors = match rounding {
            Some(rounding) => &factors.latent()?.reading_integers(rounding),
            None => factors.latent()?,
        };
        let packed = known_rotation(view)?.is_some_and(|r| r.packed);
        // Rebuilt keys have the element type of the cached rows.
        let cached = site.elem_type;
        let up_key = &factors.key.up * site.key.scale;
        let up_key = up_of_keys(up_key, packed);
        let up_value = (&factors.value.up * site.value.scale).permuted_axes([0, 2, 1]);
        let projections = Projections::of(view);
        let mut layout = Layout::default();
        projections.add_key(&mut layout, names, cached, &factors.key)?;
        layout.add(names, "w_uk", cached, &up_key)?;
        projections.add_value(&mut layout, names, cached, &factors.value)?;
        layout.add(names, "w_uv", site.value.product_type, &up_value.into_dyn())?;
        layout.add_output_bias(names, view, factors.bias.as_ref())?;
        if let Some(rounding) = rounding {
            layout.add_rounding(names, site, rounding)?;
        }
        Ok(layout)
    }

    fn patch(
        &self,
        view: &SiteView,
        layout: &Layout,
        ranks: Ranks,
        names: &SiteNames,
    ) -> Result<Patch, FormError> {
        let rotation = known_rotation(view)?;
        let mut builder = Builder::new(self.name(), view, names, layout, ranks);
        let missing = || FormError::missing("a shape in its rotation does not fit all positions");
        builder.expand(rotation).ok_or_else(missing)?;
        Ok(builder.finish()?)
    }
}

/// The rotation of the keys, which the form applies at all positions; `None` if keys are not rotated.
pub(super) fn known_rotation<'v>(view: &'v SiteView) -> Result<Option<&'v Rotation>, FormError> {
    match view.rotation() {
        Rotated::By(rotation) => Ok(Some(rotation)),
        Rotated::No => Ok(None),
        Rotated::Unknown(missing) => Err(FormError::missing(&format!(
            "the rotation of its keys is not recognised: {missing}"
        ))),
    }
}

/// w_uk [G, d, r] as the rows of heads read it: [G, r, d], or [r, G*d] if heads are split after the rotation (`packed`).
pub(super) fn up_of_keys(up: Array3<f64>, packed: bool) -> ndarray::ArrayD<f64> {
    match packed {
        true => side_by_side(up),
        false => up.permuted_axes([0, 2, 1]).into_dyn(),
    }
}

/// w_uk [G, d, r] as [r, G*d].
fn side_by_side(up: Array3<f64>) -> ndarray::ArrayD<f64> {
    let (groups, size, rank) = up.dim();
    let flat = up.permuted_axes([2, 0, 1]);
    let flat = flat.as_standard_layout().into_owned();
    flat.into_shape_with_order((rank, groups * size))
        .map_or_else(|_| Array3::zeros((0, 0, 0)).into_dyn(), |a| a.into_dyn())
}

impl Builder<'_> {
    /// Makes the whole patch; `None` if a `Reshape` of the rotation cannot be applied to another number of positions.
    fn expand(&mut self, rotation: Option<&Rotation>) -> Option<()> {
        let (site, graph) = (self.site, self.graph);
        let packed = rotation.is_some_and(|r| r.packed);
        self.narrow_caches();
        let (mut nodes, rows) = match rotation {
            Some(rotation) => rotation.rows(graph, &|part| self.name(part))?,
            None => self.new_rows(&site.key, 'k'),
        };
        let (more, latents) = self.append(&site.key, 'k', &rows, packed);
        nodes.extend(more);
        let (more, latents) = self.floats("k_B1Sr", latents);
        nodes.extend(more);
        let (more, keys) = self.rotated_keys(rotation, &latents)?;
        nodes.extend(more);
        self.put(&site.key, nodes);
        self.grouped_score(&keys);
        let (mut nodes, rows) = self.new_rows(&site.value, 'v');
        let (more, latents) = self.append(&site.value, 'v', &rows, false);
        nodes.extend(more);
        let (more, latents) = self.floats("v_B1Sr", latents);
        nodes.extend(more);
        self.put(&site.value, nodes);
        self.outputs_of("v_B1Sr", &latents);
        Some(())
    }

    /// The nodes that rebuild all keys from `latents` and rotate them, and the name of the result; `None` if the rotation cannot
    /// be applied to another number of positions.
    pub(super) fn rotated_keys(
        &mut self,
        rotation: Option<&Rotation>,
        latents: &str,
    ) -> Option<(Vec<NodeProto>, String)> {
        let packed = rotation.is_some_and(|r| r.packed);
        let (mut nodes, keys) = self.rebuilt(latents, packed);
        let Some(rotation) = rotation else {
            return Some((nodes, keys));
        };
        let (more, rotated) = self.rotate(rotation, &keys)?;
        nodes.extend(more);
        Some((nodes, rotated))
    }

    /// Replaces the value product by products with `latents` [B, 1, S, r], which are called `part`, and all else that reads the
    /// old caches.
    pub(super) fn outputs_of(&mut self, part: &str, latents: &str) {
        let site = self.site;
        let latents = self.cast(&site.value, part, latents, site.output);
        let (name, output) = self.output_names();
        let nodes = self.latent_output(&latents, &name, &output);
        self.place(site.output, nodes);
        self.guard_rows();
        self.answer_shapes();
        self.drop_paths();
    }

    /// The node that converts cached integers `latents` to the element type of the rows, and the name of the result;
    /// `latents` themselves if they are floating-point numbers.
    pub(super) fn floats(&self, part: &str, latents: String) -> (Option<NodeProto>, String) {
        if self.layout.bits == CacheBits::Model {
            return (None, latents);
        }
        let part = format!("{part}_float");
        let cast = self.unary("Cast", &part, &[&latents]);
        let cast = cast.with_int("to", self.site.elem_type.into());
        (Some(cast), self.name(&part))
    }

    /// Replaces the score product by products of the query heads with the rebuilt `keys` [B, G, S, d] that each group
    /// reads, or [B, H, S, d].
    pub(super) fn grouped_score(&mut self, keys: &str) {
        let site = self.site;
        let (split, queries) = self.queries_by_block();
        let heads = if self.has_blocks_per_head() { 'H' } else { 'G' };
        let turned = format!("k_B{heads}dS");
        let keys = self.cast(&site.key, "k_BGSd", keys, site.score);
        let transpose = self.unary("Transpose", &turned, &[&keys]);
        let mut nodes = vec![transpose.with_ints("perm", &[0, 1, 3, 2])];
        let (name, output) = self.names_of(site.score);
        let inputs = [queries.as_str(), &self.name(&turned)];
        match split {
            None => nodes.push(node("MatMul", &name, &inputs, &[&output])),
            Some(split) => {
                let product = self.unary("MatMul", "score_BGxS", &inputs);
                nodes.extend([split, product]);
                nodes.push(self.scores_of_heads("score_BGxS", &name, &output));
            }
        }
        self.place(site.score, nodes);
    }

    /// The new rows, and the nodes that make them if there is no past.
    pub(super) fn new_rows(&self, side: &Side, letter: char) -> (Vec<NodeProto>, String) {
        match &side.cache {
            Some(cache) if cache.past.is_none() => self.first_rows(cache, letter),
            _ => (Vec::new(), side.new.clone()),
        }
    }

    /// Places `nodes` at the append to the cache of `side`, or without a cache before the first reader of its rows.
    pub(super) fn put(&mut self, side: &Side, nodes: Vec<NodeProto>) {
        let at = match &side.cache {
            Some(cache) => Some(cache.append),
            None => self.graph.uses(&side.new).iter().map(|u| u.node).min(),
        };
        if let Some(at) = at {
            self.place(at, nodes);
        }
    }

    /// The nodes that compute the new latent rows and append them to the past, if there is one, and the name of the
    /// value [B, 1, S, r] that holds all rows.
    pub(super) fn append(
        &mut self,
        side: &Side,
        letter: char,
        rows: &str,
        packed: bool,
    ) -> (Vec<NodeProto>, String) {
        let part = |p: &str| format!("{letter}_{p}");
        let (down, input, bias) = match letter {
            'k' => ("w_dk", "x_k", "b_ak"),
            _ => ("w_dv", "x_v", "b_av"),
        };
        let down = self.layout.name(down);
        let (input, bias) = (self.layout.find(input), self.layout.find(bias));
        let product = |of: &str| self.unary("MatMul", &part("BTr"), &[of, down]);
        let flat = self.name(&part("BTr"));
        let (mut nodes, flat) = match (input, bias) {
            (Some(input), None) => (vec![product(input)], flat),
            (Some(input), Some(bias)) => {
                let product = self.unary("MatMul", &part("xw"), &[input, down]);
                let sum = self.unary("Add", &part("BTr"), &[&self.name(&part("xw")), bias]);
                (vec![product, sum], flat)
            }
            (None, _) if packed => (vec![product(rows)], flat),
            (None, _) => self.latent_rows(side, letter, rows),
        };
        let one = self.vector(&[1]);
        let (more, flat) = self.rounded(letter, flat);
        nodes.extend(more);
        let new = self.name(&part("B1Tr"));
        let all = match &side.cache {
            None => new.clone(),
            Some(cache) => cache.joined.clone(),
        };
        let Some((cache, past)) = side
            .cache
            .as_ref()
            .and_then(|c| Some((c, c.appended_to()?)))
        else {
            nodes.push(node("Unsqueeze", &new, &[&flat, &one], &[&all]));
            return (nodes, all);
        };
        nodes.push(node("Unsqueeze", &new, &[&flat, &one], &[&new]));
        nodes.push(self.join(cache, past, &new));
        (nodes, all)
    }

    /// The nodes that rebuild all keys from `latents`: [B, G, S, d], or [B, S, G*d] if `packed`; H in place of G if every
    /// query head has factors of its own.
    fn rebuilt(&mut self, latents: &str, packed: bool) -> (Vec<NodeProto>, String) {
        let up = self.layout.name("w_uk").to_owned();
        let (mut nodes, latents, part) = match packed {
            false => {
                let heads = if self.has_blocks_per_head() { 'H' } else { 'G' };
                (Vec::new(), latents.to_owned(), format!("k_B{heads}Sd"))
            }
            true => {
                let one = self.vector(&[1]);
                let squeeze = self.unary("Squeeze", "k_BSr", &[latents, &one]);
                (vec![squeeze], self.name("k_BSr"), "k_BSx".to_owned())
            }
        };
        let Some(bias) = self.layout.find("b_k") else {
            nodes.push(self.unary("MatMul", &part, &[&latents, &up]));
            return (nodes, self.name(&part));
        };
        let product = format!("{part}/product");
        nodes.push(self.unary("MatMul", &product, &[&latents, &up]));
        nodes.push(self.unary("Add", &part, &[&self.name(&product), bias]));
        (nodes, self.name(&part))
    }
}
