//! The factors of one cache as initializers.

use crate::forms::tensors::{TensorRange, tensor};
use ndarray::{Array3, Axis};

use crate::factor::Factors;
use crate::onnx::TensorProto;
use crate::recognize::site::Site;
use crate::weights::rows::Projected;

/// Names of the initializers of one cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Weights {
    /// Keys to latent, [G*d, r].
    pub w_dk: String,
    /// Queries to latent, [G, d, r]; holds every constant factor of the keys.
    pub w_uk: String,
    /// Values to latent, [G*dv, r].
    pub w_dv: String,
    /// Latent to outputs, [G, r, dv].
    pub w_uv: String,
    /// Where keys are a plain projection: its input, which `w_dk` [E, r] meets in place of the rows.
    pub key_from: Option<Folded>,
    /// The same of values and `w_dv`.
    pub value_from: Option<Folded>,
    /// Added to the heads' outputs, [H, 1, dv], where the latent is given something back.
    pub bias: Option<String>,
}

/// What a projection is folded with its latent: c = x W_a + b_a.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folded {
    /// x [B, T, E].
    pub input: String,
    /// b_a [r].
    pub bias: Option<String>,
}

/// The projections of one site that its latents can be folded into.
#[derive(Debug, Clone, Default)]
pub struct Projections {
    /// Of the keys.
    pub key: Option<Projected>,
    /// Of the values.
    pub value: Option<Projected>,
}

/// How the up-projections lie in memory, which is how the form multiplies with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// w_uk [G, d, r] meets the queries.
    Absorbed,
    /// w_uk [G, r, d] meets the cache.
    Expanded,
    /// w_uk [r, G*d] meets the cache, and heads are split afterwards.
    Packed,
}

/// Makes the initializers of `site` from its factors, under names that begin with `prefix`.
pub fn weights(
    prefix: &str,
    site: &Site,
    factors: &Factors,
    layout: Layout,
    projections: &Projections,
) -> Result<(Weights, Vec<TensorProto>), TensorRange> {
    let folded = |projected: &Option<Projected>, side: &str| {
        projected.as_ref().map(|p| Folded {
            input: p.input.clone(),
            bias: p.bias.as_ref().map(|_| format!("{prefix}/b_a{side}")),
        })
    };
    let down = |projected: &Option<Projected>, side: &str| match projected {
        Some(_) => format!("{prefix}/w_a{side}"),
        None => format!("{prefix}/w_d{side}"),
    };
    let names = Weights {
        key_from: folded(&projections.key, "k"),
        value_from: folded(&projections.value, "v"),
        w_dk: down(&projections.key, "k"),
        w_uk: format!("{prefix}/w_uk"),
        w_dv: down(&projections.value, "v"),
        w_uv: format!("{prefix}/w_uv"),
        bias: factors.bias.as_ref().map(|_| format!("{prefix}/b_v")),
    };
    // Where the exporter's own nodes go on scaling keys and values, the factors must not.
    let (key_scale, value_scale) = match layout {
        Layout::Absorbed => (site.key.scale, site.value.scale),
        Layout::Expanded | Layout::Packed => (1.0, 1.0),
    };
    let up_key = &factors.key.up * key_scale;
    let up_key = match layout {
        Layout::Absorbed => up_key.into_dyn(),
        Layout::Expanded => up_key.permuted_axes([0, 2, 1]).into_dyn(),
        Layout::Packed => {
            let (groups, size, rank) = up_key.dim();
            let flat = up_key.permuted_axes([2, 0, 1]);
            let flat = flat.as_standard_layout().into_owned();
            flat.into_shape_with_order((rank, groups * size))
                .map_or_else(|_| Array3::zeros((0, 0, 0)).into_dyn(), |a| a.into_dyn())
        }
    };
    let up_value = (&factors.value.up * value_scale).permuted_axes([0, 2, 1]);
    let up_value = up_value.into_dyn();
    let (cached, product) = (site.elem_type, site.product_type);
    // Rebuilt rows are of the cache's type, as the rows that they stand for.
    let up = match layout {
        Layout::Absorbed => product,
        Layout::Expanded | Layout::Packed => cached,
    };
    let mut tensors = Vec::new();
    let sides = [
        (
            (&names.w_dk, &names.key_from, &projections.key),
            &factors.key,
            (&names.w_uk, up_key.as_standard_layout()),
        ),
        (
            (&names.w_dv, &names.value_from, &projections.value),
            &factors.value,
            (&names.w_uv, up_value.as_standard_layout()),
        ),
    ];
    for ((down, folded, projected), side, (name, rows)) in &sides {
        match projected {
            None => tensors.push(tensor(down, cached, &side.down.view())?),
            Some(projected) => {
                let own = projected.elem_type;
                let weight = projected.weight.dot(&side.down);
                tensors.push(tensor(down, own, &weight.view())?);
                let name = folded.as_ref().and_then(|f| f.bias.as_ref());
                if let (Some(name), Some(bias)) = (name, &projected.bias) {
                    tensors.push(tensor(name, own, &bias.dot(&side.down).view())?);
                }
            }
        }
        tensors.push(tensor(name, up, &rows.view())?);
    }
    if let (Some(name), Some(bias)) = (&names.bias, &factors.bias) {
        let by_head = (bias * site.value.scale).insert_axis(Axis(1));
        tensors.push(tensor(name, product, &by_head.view())?);
    }
    Ok((names, tensors))
}
