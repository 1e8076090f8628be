//! The joint form: the caches hold one latent of unrotated keys and of values together.
//!
//! ```text
//! c = [k, v] W_d               W_d = [w_dk, w_dv]; k unrotated
//! c_k = the first r_k numbers of c, cached in place of the keys; c_v = the others, cached in place of the values
//! C = [C_k, C_v]               all positions, R = r_k + r_v numbers each
//! K = rotate(C w_uk + b_k, positions 0..S)
//! score_h = q_h . K_j          j = floor(h / s)
//! out_h = (p_h C) w_uv[j] + b_v
//! ```
//!
//! Keys and values are maps of one hidden state, so that one latent describes both with fewer numbers than two latents do:
//! the most accurate form at a given size. A step rebuilds all keys, as in the expanded form, from twice as many numbers.

use crate::analysis::SiteView;
use crate::factor::{Made, Ranks};
use crate::forms::builder::Builder;
use crate::forms::expanded::{known_rotation, up_of_keys};
use crate::forms::layout::Layout;
use crate::forms::names::SiteNames;
use crate::forms::{CachedKeys, Form, FormError, Hindrance, Rounds};
use crate::graph::patch::Patch;
use crate::onnx::NodeProto;
use crate::recognize::rotation::Rotation;

/// The form `joint`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Joint;

impl Form for Joint {
    fn name(&self) -> &'static str {
        "joint"
    }

    fn cached_keys(&self) -> CachedKeys {
        CachedKeys::WithValues
    }

    fn is_reconstructed(&self) -> bool {
        false
    }

    fn hinders_in_place(&self) -> Option<Hindrance> {
        None
    }

    fn hinders_per_head(&self) -> Option<Hindrance> {
        None
    }

    fn rounds(&self) -> Rounds {
        Rounds::AboutCentre
    }

    fn check(&self, view: &SiteView, _: Ranks) -> Result<(), FormError> {
        let site = view.site();
        if site.key.cache.is_none() || site.value.cache.is_none() {
            return Err(FormError::missing("it has no cache of keys and values"));
        }
        known_rotation(view).map(|_| ())
    }

    /// `w_dk` [G*d + G*dv, r_k], `w_dv` [G*d + G*dv, r_v], `w_uk` [G, R, d] and `b_k` [G, 1, d], or [R, G*d] and [G*d] if heads
    /// are split after the rotation, and `w_uv` [G, R, dv] (H in place of G if every query head has factors of its own); `b_v` and
    /// the scales of integers as in the absorbed form.
    fn layout(
        &self,
        view: &SiteView,
        factors: &Made,
        names: &SiteNames,
    ) -> Result<Layout, FormError> {
        let (site, rounding) = (view.site(), factors.rounding());
        let mut factors = factors.joint()?;
        if let Some(rounding) = rounding {
            factors = factors.reading_integers(rounding);
        }
        let packed = known_rotation(view)?.is_some_and(|r| r.packed);
        let cached = site.elem_type;
        let up_key = up_of_keys(&factors.key.up * site.key.scale, packed);
        let up_value = (&factors.value.up * site.value.scale).permuted_axes([0, 2, 1]);
        let mut layout = Layout::default();
        layout.add(names, "w_dk", cached, &factors.key.down.into_dyn())?;
        layout.add(names, "w_uk", cached, &up_key)?;
        if let Some(bias) = factors.key_bias {
            let bias = (bias * site.key.scale).into_dyn();
            let bias = match packed {
                true => bias.flatten().into_owned().into_dyn(),
                false => bias.insert_axis(ndarray::Axis(1)),
            };
            layout.add(names, "b_k", cached, &bias)?;
        }
        layout.add(names, "w_dv", cached, &factors.value.down.into_dyn())?;
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
        builder.join_sides(rotation).ok_or_else(missing)?;
        Ok(builder.finish()?)
    }
}

impl Builder<'_> {
    /// Makes the whole patch; `None` if a `Reshape` of the rotation cannot be applied to another number of positions.
    fn join_sides(&mut self, rotation: Option<&Rotation>) -> Option<()> {
        let (site, graph) = (self.site, self.graph);
        let packed = rotation.is_some_and(|r| r.packed);
        self.narrow_caches();
        let (mut nodes, keys) = match rotation {
            Some(rotation) => rotation.rows(graph, &|part| self.name(part))?,
            None => self.new_rows(&site.key, 'k'),
        };
        let (more, values) = self.new_rows(&site.value, 'v');
        nodes.extend(more);
        let (more, rows) = self.rows_of_both(&keys, packed, &values);
        nodes.extend(more);
        let (more, of_keys) = self.append(&site.key, 'k', &rows, true);
        nodes.extend(more);
        let (more, of_values) = self.append(&site.value, 'v', &rows, true);
        nodes.extend(more);
        let both = self.unary("Concat", "c_B1Sr", &[&of_keys, &of_values]);
        nodes.push(both.with_int("axis", 3));
        let (more, latents) = self.floats("c_B1Sr", self.name("c_B1Sr"));
        nodes.extend(more);
        let (more, keys) = self.rotated_keys(rotation, &latents)?;
        nodes.extend(more);
        // Both sides are known at the later one of the two places where rows join a cache.
        let (key, value) = (site.key.cache.as_ref()?, site.value.cache.as_ref()?);
        let (first, last) = match key.append < value.append {
            true => (&site.key, &site.value),
            false => (&site.value, &site.key),
        };
        self.put(first, Vec::new());
        self.put(last, nodes);
        self.grouped_score(&keys);
        self.outputs_of("c_B1Sr", &latents);
        Some(())
    }

    /// The nodes of the rows [B, T, G*d + G*dv] of `keys` [B, G, T, d], or [B, T, G*d] if `packed`, and of `values` [B, G, T,
    /// dv], and the name of the result.
    fn rows_of_both(&mut self, keys: &str, packed: bool, values: &str) -> (Vec<NodeProto>, String) {
        let site = self.site;
        let (mut nodes, keys) = match packed {
            true => (Vec::new(), keys.to_owned()),
            false => self.heads_joined(&site.key, "k_BTGd", keys, "k_BTx"),
        };
        let (joined, values) = self.heads_joined(&site.value, "v_BTGd", values, "v_BTx");
        nodes.extend(joined);
        let both = self.unary("Concat", "kv_BTx", &[&keys, &values]);
        nodes.push(both.with_int("axis", 2));
        (nodes, self.name("kv_BTx"))
    }
}
