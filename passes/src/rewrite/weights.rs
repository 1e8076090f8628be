//! The factors of one cache as initializers.

use super::tensors::{TensorRange, tensor};
use ndarray::Axis;

use crate::factor::Factors;
use crate::onnx::TensorProto;
use crate::recognize::site::Site;

/// Names of the initializers of one cache.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// Makes the initializers of `site` from its factors, under names that begin with `prefix`.
pub fn weights(
    prefix: &str,
    site: &Site,
    factors: &Factors,
) -> Result<(Weights, Vec<TensorProto>), TensorRange> {
    let names = Weights {
        w_dk: format!("{prefix}/w_dk"),
        w_uk: format!("{prefix}/w_uk"),
        w_dv: format!("{prefix}/w_dv"),
        w_uv: format!("{prefix}/w_uv"),
        bias: factors.bias.as_ref().map(|_| format!("{prefix}/b_v")),
    };
    let up_key = &factors.key.up * site.key.scale;
    let up_value = (&factors.value.up * site.value.scale).permuted_axes([0, 2, 1]);
    let (cached, product) = (site.elem_type, site.product_type);
    let mut tensors = vec![
        tensor(&names.w_dk, cached, &factors.key.down.view())?,
        tensor(&names.w_uk, product, &up_key.view())?,
        tensor(&names.w_dv, cached, &factors.value.down.view())?,
        tensor(&names.w_uv, product, &up_value.as_standard_layout().view())?,
    ];
    if let (Some(name), Some(bias)) = (&names.bias, &factors.bias) {
        let by_head = (bias * site.value.scale).insert_axis(Axis(1));
        tensors.push(tensor(name, product, &by_head.view())?);
    }
    Ok((names, tensors))
}
