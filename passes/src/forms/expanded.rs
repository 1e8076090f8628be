//! The expanded form: the cache holds latents of unrotated keys and of values; keys and values are rebuilt from them.
//!
//! ```text
//! c_k = x W_a          W_a = W_K w_dk; cached in place of the rotated keys
//! K = rotate(C_k w_uk, positions 0..S)          all positions at every step
//! c_v = x W_a'         W_a' = W_V w_dv; cached
//! V = C_v w_uv
//! ```
//!
//! (TransMLA, arXiv 2502.07864, figure 1c.) If unrotated keys or values are not a plain projection of the layer input
//! (normalized or quantized, for example), the projection is kept and w_dk or w_dv is applied to its result. The
//! readers of the cached keys and values read K and V instead, so that the exporter's repetition, masks and products
//! are kept. If every query head has factors of its own, K and V have H heads, and new products read them without a
//! repetition. Positions of cached rows are computed from the mask, or are their indices; without a cache all rows are
//! new and have the positions of the original.

use ndarray::{Array3, Axis};

use crate::analysis::SiteView;
use crate::factor::{Made, Ranks, SideFactors};
use crate::forms::builder::Builder;
use crate::forms::folded::Projections;
use crate::forms::layout::Layout;
use crate::forms::names::SiteNames;
use crate::forms::{CachedKeys, Form, FormError, Hindrance};
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
        let (site, factors) = (view.site(), factors.latent()?);
        let packed = known_rotation(view)?.is_some_and(|r| r.packed);
        // The exporter's nodes, which scale keys and values, are kept, so the factors do not include the scales, unless
        // new products read a block for each query head. Rebuilt rows have the element type of the cached rows.
        let cached = site.elem_type;
        let up = |factors: &SideFactors, side: &Side| match factors.up.len_of(Axis(0)) {
            blocks if blocks == site.kv_heads => factors.up.clone(),
            _ => &factors.up * side.scale,
        };
        let up_key = up(&factors.key, &site.key);
        let up_key = match packed {
            true => side_by_side(up_key),
            false => up_key.permuted_axes([0, 2, 1]).into_dyn(),
        };
        let up_value = up(&factors.value, &site.value);
        let up_value = up_value.permuted_axes([0, 2, 1]).into_dyn();
        let projections = Projections::of(view);
        let mut layout = Layout::default();
        projections.add_key(&mut layout, names, cached, &factors.key)?;
        layout.add(names, "w_uk", cached, &up_key)?;
        projections.add_value(&mut layout, names, cached, &factors.value)?;
        layout.add(names, "w_uv", cached, &up_value)?;
        layout.add_output_bias(names, view, factors)?;
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
fn known_rotation<'v>(view: &'v SiteView) -> Result<Option<&'v Rotation>, FormError> {
    match view.rotation() {
        Rotated::By(rotation) => Ok(Some(rotation)),
        Rotated::No => Ok(None),
        Rotated::Unknown(missing) => Err(FormError::missing(&format!(
            "the rotation of its keys is not recognised: {missing}"
        ))),
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

/// The value that holds all rows of `side`, past and new.
fn all_rows(side: &Side) -> &str {
    side.cache.as_ref().map_or(&side.new, |c| &c.joined)
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
        let (more, mut keys) = self.rebuilt(&latents, 'k', packed);
        nodes.extend(more);
        if let Some(rotation) = rotation {
            let (more, rotated) = self.rotate(rotation, &keys)?;
            nodes.extend(more);
            keys = rotated;
        }
        self.put(&site.key, nodes);
        let (mut nodes, rows) = self.new_rows(&site.value, 'v');
        let (more, latents) = self.append(&site.value, 'v', &rows, false);
        nodes.extend(more);
        let (more, values) = self.rebuilt(&latents, 'v', false);
        nodes.extend(more);
        self.put(&site.value, nodes);
        if self.has_blocks_per_head() {
            self.read_by_head(&keys, &values);
            return Some(());
        }
        self.read_rebuilt(&site.key, keys);
        self.read_rebuilt(&site.value, values);
        self.add_bias();
        for reader in self.past_readers() {
            self.shape(&reader);
        }
        Some(())
    }

    /// Replaces both products by products with `keys` [B, H, S, d] and `values` [B, H, S, dv].
    fn read_by_head(&mut self, keys: &str, values: &str) {
        let site = self.site;
        let turned = self.unary("Transpose", "k_BHdS", &[keys]);
        self.place(site.score, vec![turned.with_ints("perm", &[0, 1, 3, 2])]);
        let keys = self.cast(&site.key, "k_BHdS", &self.name("k_BHdS"), site.score);
        let (name, output) = self.names_of(site.score);
        let score = node("MatMul", &name, &[&site.query, &keys], &[&output]);
        self.place(site.score, vec![score]);
        let values = self.cast(&site.value, "v_BHSd", values, site.output);
        let (name, output) = self.names_of(site.output);
        let inputs = [site.probabilities.as_str(), &values];
        let nodes = self.with_bias("MatMul", &inputs, &name, &output);
        self.place(site.output, nodes);
        self.answer_shapes();
        self.drop_paths();
    }

    /// Redirects all readers of the rows of `side` to `rows`, also readers of the values between cache and graph
    /// output.
    fn read_rebuilt(&mut self, side: &Side, rows: String) {
        let elem_type = self.facts().elem_type(all_rows(side));
        let mut nodes = Vec::new();
        for value in side.cache.iter().flat_map(|c| &c.returned) {
            let other = self
                .facts()
                .elem_type(value)
                .filter(|t| Some(*t) != elem_type);
            let read = match other {
                None => rows.clone(),
                Some(to) => {
                    let cast = self.unary("Cast", &format!("read/{value}"), &[&rows]);
                    nodes.push(cast.with_int("to", to.into()));
                    self.name(&format!("read/{value}"))
                }
            };
            self.redirect(value, read);
        }
        self.redirect(all_rows(side), rows);
        self.put(side, nodes);
    }

    /// The new rows, and the nodes that make them if there is no past.
    fn new_rows(&self, side: &Side, letter: char) -> (Vec<NodeProto>, String) {
        match &side.cache {
            Some(cache) if cache.past.is_none() => self.first_rows(cache, letter),
            _ => (Vec::new(), side.new.clone()),
        }
    }

    /// Places `nodes` at the append to the cache of `side`, or without a cache before the first reader of its rows.
    fn put(&mut self, side: &Side, nodes: Vec<NodeProto>) {
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
    fn append(
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
        let mut nodes = match (input, bias) {
            (Some(input), None) => vec![self.unary("MatMul", &part("BTr"), &[input, down])],
            (Some(input), Some(bias)) => vec![
                self.unary("MatMul", &part("xw"), &[input, down]),
                self.unary("Add", &part("BTr"), &[&self.name(&part("xw")), bias]),
            ],
            (None, _) if packed => vec![self.unary("MatMul", &part("BTr"), &[rows, down])],
            (None, _) => self.latent_rows(side, letter, rows),
        };
        let one = self.vector(&[1]);
        let (flat, new) = (self.name(&part("BTr")), self.name(&part("B1Tr")));
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

    /// The nodes that rebuild all rows from `latents`: [B, G, S, size], or [B, S, G*size] if `packed`; H in place of G if
    /// every query head has factors of its own.
    fn rebuilt(&mut self, latents: &str, letter: char, packed: bool) -> (Vec<NodeProto>, String) {
        let up = match letter {
            'k' => self.layout.name("w_uk"),
            _ => self.layout.name("w_uv"),
        };
        if !packed {
            let heads = if self.has_blocks_per_head() { 'H' } else { 'G' };
            let part = format!("{letter}_B{heads}Sd");
            let node = self.unary("MatMul", &part, &[latents, up]);
            return (vec![node], self.name(&part));
        }
        let one = self.vector(&[1]);
        let flat = format!("{letter}_BSr");
        let part = format!("{letter}_BSx");
        let nodes = vec![
            self.unary("Squeeze", &flat, &[latents, &one]),
            self.unary("MatMul", &part, &[&self.name(&flat), up]),
        ];
        (nodes, self.name(&part))
    }

    /// Adds the bias correction, if there is one, to the output of the value product.
    fn add_bias(&mut self) {
        let product = self.site.output;
        let (Some(bias), Some(mut reader)) = (self.layout.find("b_v"), self.reader(product)) else {
            return;
        };
        let (name, output) = self.names_of(product);
        let plain = self.name("out_BHTd");
        reader.name = Some(plain.clone());
        reader.output = vec![plain.clone()];
        let sum = node("Add", &name, &[&plain, bias], &[&output]);
        self.place(product, vec![reader, sum]);
    }
}
