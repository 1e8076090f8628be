//! The factors of one cache as initializers.

use super::tensors::{TensorRange, tensor};
use ndarray::{Array3, Axis};

use crate::factor::Factors;
use crate::onnx::TensorProto;
use crate::recognize::site::Site;

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
    /// Added to the heads' outputs, [H, 1, dv], where the latent is given something back.
    pub bias: Option<String>,
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
) -> Result<(Weights, Vec<TensorProto>), TensorRange> {
    let names = Weights {
        w_dk: format!("{prefix}/w_dk"),
        w_uk: format!("{prefix}/w_uk"),
        w_dv: format!("{prefix}/w_dv"),
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
    let (cached, product) = (site.elem_type, site.product_type);
    // Rebuilt rows are of the cache's type, as the rows that they stand for.
    let up = match layout {
        Layout::Absorbed => product,
        Layout::Expanded | Layout::Packed => cached,
    };
    let mut tensors = vec![
        tensor(&names.w_dk, cached, &factors.key.down.view())?,
        tensor(&names.w_uk, up, &up_key.as_standard_layout().view())?,
        tensor(&names.w_dv, cached, &factors.value.down.view())?,
        tensor(&names.w_uv, up, &up_value.as_standard_layout().view())?,
    ];
    if let (Some(name), Some(bias)) = (&names.bias, &factors.bias) {
        let by_head = (bias * site.value.scale).insert_axis(Axis(1));
        tensors.push(tensor(name, product, &by_head.view())?);
    }
    Ok((names, tensors))
}
