//! Normalizations over the last axes.

use candle_core::Tensor;

use crate::error::{OpError, invalid};
use crate::operators::broadcast::reduced;
use crate::operators::{Call, Computed, Pull, TrainOperator, axis, contrib, flows};

pub const OPERATORS: &[TrainOperator] = &[
    flows("RMSNormalization", root_mean_square),
    flows("SimplifiedLayerNormalization", root_mean_square),
    flows("LayerNormalization", layer_normalization),
    contrib("SimplifiedLayerNormalization", root_mean_square),
    contrib("SkipSimplifiedLayerNormalization", skip),
];

/// x as [rows, width], with all axes from the normalized one on merged.
fn flattened(call: &Call, x: &Tensor) -> Result<Tensor, OpError> {
    let at = axis(call.int("axis", -1), x.rank())?;
    let (outer, inner) = x.dims().split_at_checked(at).unwrap_or_default();
    Ok(x.reshape((
        outer.iter().product::<usize>(),
        inner.iter().product::<usize>(),
    ))?)
}

/// The operators of ONNX Runtime that add a residual have another default than the others.
fn epsilon(call: &Call) -> f64 {
    let default = match call.node.op_type().starts_with("Skip") {
        true => 1e-12,
        false => 1e-5,
    };
    call.float("epsilon", default).into()
}

/// The values that the backward pass of a normalization n = (x - mean) s needs.
struct Normalized {
    /// n [rows, width].
    n: Tensor,
    /// s [rows, 1], one over the root mean square.
    scale: Tensor,
    /// Whether the mean was subtracted.
    centered: bool,
}

impl Normalized {
    fn of(x: &Tensor, epsilon: f64, centered: bool) -> Result<Self, OpError> {
        let x = match centered {
            true => x.broadcast_sub(&x.mean_keepdim(1)?)?,
            false => x.clone(),
        };
        let scale = (x.sqr()?.mean_keepdim(1)? + epsilon)?.sqrt()?.recip()?;
        Ok(Self {
            n: x.broadcast_mul(&scale)?,
            scale,
            centered,
        })
    }

    /// dx = s (dn - n mean(n dn)), minus its mean if x was centered.
    fn pull(&self, grad: &Tensor) -> Result<Tensor, OpError> {
        let along = (&self.n * grad)?.mean_keepdim(1)?;
        let across = (grad - self.n.broadcast_mul(&along)?)?;
        let across = match self.centered {
            true => across.broadcast_sub(&across.mean_keepdim(1)?)?,
            false => across,
        };
        Ok(across.broadcast_mul(&self.scale)?)
    }
}

/// y = n gain + bias, with the gain at input `gain` and the bias at the next one.
fn scaled(call: &Call, x: &Tensor, gain: usize, centered: bool) -> Result<(Tensor, Pull), OpError> {
    let dims = x.dims().to_vec();
    let normalized = Normalized::of(&flattened(call, x)?, epsilon(call), centered)?;
    let gains = call.input(gain)?.clone();
    let width = gains.elem_count();
    let row = |t: &Tensor| t.reshape((1, width));
    let mut output = normalized.n.broadcast_mul(&row(&gains)?)?;
    let bias = call.optional(gain + 1).cloned();
    if let Some(bias) = &bias {
        output = output.broadcast_add(&row(bias)?)?;
    }
    let shape = dims.clone();
    let (to_gain, to_bias) = (call.tracks(gain), call.tracks(gain + 1));
    let rows = normalized.n.dims().to_vec();
    let pull: Pull = Box::new(move |grads| {
        let Some(Some(grad)) = grads.first() else {
            return Ok(Vec::new());
        };
        let grad = grad.reshape(rows)?;
        let to_x = normalized.pull(&grad.broadcast_mul(&gains.reshape((1, width))?)?)?;
        let own = |grad: &Tensor| -> Result<Tensor, OpError> {
            Ok(reduced(grad, &[1, width])?.reshape(gains.dims())?)
        };
        Ok(vec![
            Some(to_x.reshape(dims)?),
            to_gain
                .then(|| own(&(&grad * &normalized.n)?))
                .transpose()?,
            to_bias.then(|| own(&grad)).transpose()?,
        ])
    });
    Ok((output.reshape(shape)?, pull))
}

fn made(call: &Call, output: Tensor, pull: Pull) -> Computed {
    Computed {
        outputs: vec![output],
        pull: call.tracked.iter().any(|&t| t).then_some(pull),
    }
}

/// y = x / sqrt(mean x^2 + epsilon) gain.
fn root_mean_square(call: &Call) -> Result<Computed, OpError> {
    let (output, pull) = scaled(call, call.input(0)?, 1, false)?;
    Ok(made(call, output, pull))
}

/// y = (x - mean) / sqrt(variance + epsilon) gain + bias.
fn layer_normalization(call: &Call) -> Result<Computed, OpError> {
    let (output, pull) = scaled(call, call.input(0)?, 1, true)?;
    Ok(made(call, output, pull))
}

/// Output 3 is x + skip (+ bias), output 0 its RMS normalization.
fn skip(call: &Call) -> Result<Computed, OpError> {
    let (x, other) = (call.input(0)?, call.input(1)?);
    if x.dims() != other.dims() {
        return invalid(format!("{:?} and {:?} are added", x.dims(), other.dims()));
    }
    if call.tracks(2) || call.tracks(3) {
        return invalid("gain and bias have no gradient");
    }
    let mut sum = (x + other)?;
    if let Some(bias) = call.optional(3) {
        sum = sum.broadcast_add(bias)?;
    }
    // The bias at input 3 is part of the sum, so it is not passed to the normalization.
    let gain = [Some(sum.clone()), call.optional(2).cloned()];
    let inner = Call {
        node: call.node,
        inputs: &gain,
        tracked: &[],
    };
    let (output, pull) = scaled(&inner, &sum, 1, false)?;
    let tracked = [call.tracks(0), call.tracks(1)];
    let pull: Pull = Box::new(move |grads| {
        let through = match grads.first() {
            Some(Some(_)) => pull(grads)?.into_iter().next().flatten(),
            _ => None,
        };
        let total = match (through, grads.get(3).cloned().flatten()) {
            (Some(a), Some(b)) => Some((a + b)?),
            (a, b) => a.or(b),
        };
        let [to_x, to_other] = tracked;
        Ok(vec![
            total.clone().filter(|_| to_x),
            total.filter(|_| to_other),
        ])
    });
    let mut made = made(call, output.clone(), pull);
    // Outputs 1 and 2 are statistics, which decoders do not read.
    made.outputs = vec![output.clone(), output.clone(), output, sum];
    Ok(made)
}
