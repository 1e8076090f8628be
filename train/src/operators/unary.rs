//! Operators of one operand, element by element.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, SQRT_2};

use candle_core::{DType, Tensor};

use crate::error::{OpError, invalid};
use crate::kernels::{exp, map, zip};
use crate::operators::{Call, Computed, TrainOperator, contrib, flows, missing, stops};

pub const OPERATORS: &[TrainOperator] = &[
    flows("Neg", |c| linear(c, -1.0)),
    flows("Sqrt", |c| by_output(c, Tensor::sqrt, |g, y| g * 0.5 / y)),
    flows("Reciprocal", |c| {
        by_output(c, Tensor::recip, |g, y| -g * y * y)
    }),
    flows("Exp", |c| by_output(c, Tensor::exp, |g, y| g * y)),
    flows("Tanh", |c| {
        by_output(c, |x| map(x, f32::tanh), |g, y| g * (1.0 - y * y))
    }),
    flows("Sigmoid", |c| {
        by_output(c, |x| map(x, sigmoid), |g, y| g * y * (1.0 - y))
    }),
    flows("Log", |c| by_input(c, f32::ln, |x| 1.0 / x)),
    flows("Sin", |c| by_input(c, f32::sin, f32::cos)),
    flows("Cos", |c| by_input(c, f32::cos, |x| -x.sin())),
    flows("Abs", abs),
    flows("Relu", |c| {
        by_input(c, |x| x.max(0.0), |x| if x > 0.0 { 1.0 } else { 0.0 })
    }),
    flows("Erf", |c| {
        by_input(c, erf, |x| FRAC_2_SQRT_PI * (-x * x).exp())
    }),
    flows("Softplus", |c| {
        by_input(c, |x| x.max(0.0) + (-x.abs()).exp().ln_1p(), sigmoid)
    }),
    flows("Swish", swish),
    flows("Gelu", gelu),
    contrib("Gelu", |c| by_input(c, gelu_erf, gelu_erf_slope)),
    contrib("FastGelu", fast_gelu),
    contrib("QuickGelu", quick_gelu),
    flows("Round", round),
    missing("Floor", |c| Ok(map(&float(c)?, f32::floor)?.into())),
    missing("Ceil", |c| Ok(map(&float(c)?, f32::ceil)?.into())),
    stops("Not", |c| Ok(c.input(0)?.eq(0u8)?.into())),
];

fn float(call: &Call) -> Result<Tensor, OpError> {
    let x = call.input(0)?;
    match x.dtype() {
        DType::F32 => Ok(x.clone()),
        other => invalid(format!(
            "an operand of floats is expected, and it is {other:?}"
        )),
    }
}

/// y = x rounded to the nearest integer, and to the even one of two. The gradient is that of x (a straight-through estimator).
fn round(call: &Call) -> Result<Computed, OpError> {
    let y = map(&float(call)?, f32::round_ties_even)?;
    Ok(call.made_of_first(y, |grad| Ok(grad.clone())))
}

/// y = factor x, of floats and integers.
fn linear(call: &Call, factor: f64) -> Result<Computed, OpError> {
    let output = (call.input(0)? * factor)?;
    Ok(call.made_of_first(output, move |grad| Ok((grad * factor)?)))
}

/// An operator whose gradient `slope(dy, y)` is computed from its output, which is kept.
fn by_output(
    call: &Call,
    of: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
    slope: fn(f32, f32) -> f32,
) -> Result<Computed, OpError> {
    let output = of(&float(call)?)?;
    let y = output.clone();
    Ok(call.made_of_first(output, move |grad| Ok(zip(grad, &y, slope)?)))
}

/// An operator whose derivative `slope(x)` is computed from its input, which is kept.
fn by_input(call: &Call, of: fn(f32) -> f32, slope: fn(f32) -> f32) -> Result<Computed, OpError> {
    let x = float(call)?;
    let output = map(&x, of)?;
    Ok(call.made_of_first(output, move |grad| Ok(zip(grad, &x, |g, x| g * slope(x))?)))
}

/// y = |x|, of floats and integers; dx = dy sign(x).
fn abs(call: &Call) -> Result<Computed, OpError> {
    let x = call.input(0)?;
    match x.dtype() {
        DType::I64 => Ok(x.maximum(&(x * -1.0)?)?.into()),
        _ => by_input(call, f32::abs, f32::signum),
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// y = x sigmoid(a x), a = `alpha`.
fn scaled_swish(call: &Call, alpha: f32) -> Result<Computed, OpError> {
    let x = float(call)?;
    let output = map(&x, |x| x * sigmoid(alpha * x))?;
    Ok(call.made_of_first(output, move |grad| {
        let slope = |x: f32| {
            let s = sigmoid(alpha * x);
            s * (1.0 + alpha * x * (1.0 - s))
        };
        Ok(zip(grad, &x, |g, x| g * slope(x))?)
    }))
}

fn swish(call: &Call) -> Result<Computed, OpError> {
    scaled_swish(call, call.float("alpha", 1.0))
}

fn quick_gelu(call: &Call) -> Result<Computed, OpError> {
    scaled_swish(call, call.float("alpha", 1.702))
}

fn gelu(call: &Call) -> Result<Computed, OpError> {
    match call.text("approximate").as_deref() {
        Some("tanh") => by_input(call, gelu_tanh, gelu_tanh_slope),
        _ => by_input(call, gelu_erf, gelu_erf_slope),
    }
}

/// The tanh approximation of GELU, of the input plus an optional bias without gradient.
fn fast_gelu(call: &Call) -> Result<Computed, OpError> {
    let Some(bias) = call.optional(1) else {
        return by_input(call, gelu_tanh, gelu_tanh_slope);
    };
    if call.tracks(1) {
        return invalid("the bias has no gradient");
    }
    let x = float(call)?.broadcast_add(bias)?;
    let output = map(&x, gelu_tanh)?;
    Ok(call.made_of_first(output, move |grad| {
        Ok(zip(grad, &x, |g, x| g * gelu_tanh_slope(x))?)
    }))
}

/// x Phi(x), with Phi the normal distribution function.
fn gelu_erf(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * FRAC_1_SQRT_2))
}

fn gelu_erf_slope(x: f32) -> f32 {
    let density = (-0.5 * x * x).exp() * 0.5 * FRAC_2_SQRT_PI / SQRT_2;
    0.5 * (1.0 + erf(x * FRAC_1_SQRT_2)) + x * density
}

/// sqrt(2 / pi).
const GELU_SCALE: f32 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2;
const GELU_CUBE: f32 = 0.044_715;

/// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
fn gelu_tanh(x: f32) -> f32 {
    0.5 * x * (1.0 + (GELU_SCALE * (x + GELU_CUBE * x * x * x)).tanh())
}

fn gelu_tanh_slope(x: f32) -> f32 {
    let t = (GELU_SCALE * (x + GELU_CUBE * x * x * x)).tanh();
    let inner = GELU_SCALE * (1.0 + 3.0 * GELU_CUBE * x * x);
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner
}

/// The error function by its Taylor series near 0 and the continued fraction of its complement beyond, in fp64: within
/// one rounding of fp32.
fn erf(x: f32) -> f32 {
    let x = f64::from(x);
    let size = x.abs();
    if size > 4.0 {
        return x.signum() as f32;
    }
    if size < 2.0 {
        let mut term = x;
        let mut sum = x;
        for n in 1..40 {
            let n = f64::from(n);
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        return (sum * std::f64::consts::FRAC_2_SQRT_PI) as f32;
    }
    let fraction = (1..=40)
        .rev()
        .fold(size, |tail, n| size + f64::from(n) / 2.0 / tail);
    let complement = (-size * size).exp() / fraction * 0.5 * std::f64::consts::FRAC_2_SQRT_PI;
    (x.signum() * (1.0 - complement)) as f32
}
