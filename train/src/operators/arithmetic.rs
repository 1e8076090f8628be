//! Operators of two or three operands with broadcasting.

use candle_core::{DType, Tensor};

use crate::error::{OpError, invalid};
use crate::operators::broadcast::{common, reduced};
use crate::operators::{Call, Computed, TrainOperator, flows, stops};

pub const OPERATORS: &[TrainOperator] = &[
    flows("Add", add),
    flows("Sub", sub),
    flows("Mul", mul),
    flows("Div", div),
    flows("Pow", pow),
    flows("Where", select),
    flows("Max", |c| extreme(c, Tensor::broadcast_maximum)),
    flows("Min", |c| extreme(c, Tensor::broadcast_minimum)),
    flows("Clip", clip),
    stops("Mod", modulo),
];

/// y = a + b; da = dy, db = dy.
fn add(call: &Call) -> Result<Computed, OpError> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let (a_dims, b_dims) = (a.dims().to_vec(), b.dims().to_vec());
    let tracked = [call.tracks(0), call.tracks(1)];
    Ok(call.made(a.broadcast_add(b)?, move |grad| {
        let [to_a, to_b] = tracked;
        Ok(vec![
            to_a.then(|| reduced(grad, &a_dims)).transpose()?,
            to_b.then(|| reduced(grad, &b_dims)).transpose()?,
        ])
    }))
}

/// y = a - b; da = dy, db = -dy.
fn sub(call: &Call) -> Result<Computed, OpError> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let (a_dims, b_dims) = (a.dims().to_vec(), b.dims().to_vec());
    let tracked = [call.tracks(0), call.tracks(1)];
    Ok(call.made(a.broadcast_sub(b)?, move |grad| {
        let [to_a, to_b] = tracked;
        let negated = || -> Result<Tensor, OpError> { Ok(reduced(grad, &b_dims)?.neg()?) };
        Ok(vec![
            to_a.then(|| reduced(grad, &a_dims)).transpose()?,
            to_b.then(negated).transpose()?,
        ])
    }))
}

/// y = a b; da = dy b, db = dy a.
fn mul(call: &Call) -> Result<Computed, OpError> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let (a_dims, b_dims) = (a.dims().to_vec(), b.dims().to_vec());
    let (for_a, for_b) = (
        call.tracks(0).then(|| b.clone()),
        call.tracks(1).then(|| a.clone()),
    );
    Ok(call.made(a.broadcast_mul(b)?, move |grad| {
        let times = |other: Tensor, dims: &[usize]| reduced(&grad.broadcast_mul(&other)?, dims);
        Ok(vec![
            for_a.map(|b| times(b, &a_dims)).transpose()?,
            for_b.map(|a| times(a, &b_dims)).transpose()?,
        ])
    }))
}

/// y = a / b; da = dy / b, db = -dy y / b. Integers are divided towards zero.
fn div(call: &Call) -> Result<Computed, OpError> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let output = a.broadcast_div(b)?;
    let (a_dims, b_dims) = (a.dims().to_vec(), b.dims().to_vec());
    let tracked = [call.tracks(0), call.tracks(1)];
    let (b, y) = (b.clone(), tracked[1].then(|| output.clone()));
    Ok(call.made(output, move |grad| {
        let over = grad.broadcast_div(&b)?;
        let to_b = |y: Tensor| reduced(&over.broadcast_mul(&y)?.neg()?, &b_dims);
        Ok(vec![
            tracked[0].then(|| reduced(&over, &a_dims)).transpose()?,
            y.map(to_b).transpose()?,
        ])
    }))
}

/// y = a^e; da = dy e a^(e-1). The exponent has no gradient; it is constant in decoders.
fn pow(call: &Call) -> Result<Computed, OpError> {
    let (base, exponent) = (call.input(0)?, call.input(1)?);
    if call.tracks(1) {
        return invalid("the exponent has no gradient");
    }
    let base = &base.to_dtype(DType::F32)?;
    let exponent = exponent.to_dtype(DType::F32)?;
    if exponent.elem_count() != 1 {
        if call.tracks(0) {
            return invalid("the gradient is only defined here for one exponent");
        }
        return Ok(base.broadcast_pow(&exponent)?.into());
    }
    let power = f64::from(
        exponent
            .flatten_all()?
            .to_vec1::<f32>()?
            .first()
            .copied()
            .unwrap_or(1.0),
    );
    let raised = |x: &Tensor, power: f64| match power {
        1.0 => Ok(x.clone()),
        2.0 => x.sqr(),
        3.0 => x.sqr()?.mul(x),
        0.5 => x.sqrt(),
        -0.5 => x.sqrt()?.recip(),
        -1.0 => x.recip(),
        other => x.powf(other),
    };
    let (output, x) = (raised(base, power)?, base.clone());
    Ok(call.made_of_first(output, move |grad| {
        Ok((grad.mul(&raised(&x, power - 1.0)?)? * power)?)
    }))
}

/// y = c ? a : b; da = c ? dy : 0, db = c ? 0 : dy.
fn select(call: &Call) -> Result<Computed, OpError> {
    let (c, a, b) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let dims = common(&common(c.dims(), a.dims())?, b.dims())?;
    let full = |t: &Tensor| t.broadcast_as(dims.as_slice());
    let output = full(c)?.where_cond(&full(a)?, &full(b)?)?;
    let (a_dims, b_dims) = (a.dims().to_vec(), b.dims().to_vec());
    let (c, tracked) = (full(c)?, [call.tracks(1), call.tracks(2)]);
    Ok(call.made(output, move |grad| {
        let zero = grad.zeros_like()?;
        let (to_a, to_b) = (
            || reduced(&c.where_cond(grad, &zero)?, &a_dims),
            || reduced(&c.where_cond(&zero, grad)?, &b_dims),
        );
        Ok(vec![
            None,
            tracked[0].then(to_a).transpose()?,
            tracked[1].then(to_b).transpose()?,
        ])
    }))
}

/// y = the largest or the smallest of the inputs; its gradient goes to the first input that it equals.
fn extreme(
    call: &Call,
    of: fn(&Tensor, &Tensor) -> candle_core::Result<Tensor>,
) -> Result<Computed, OpError> {
    let mut result = call.input(0)?.clone();
    for input in call.inputs.iter().skip(1).flatten() {
        result = of(&result, input)?;
    }
    let (inputs, chosen) = (call.inputs.to_vec(), result.clone());
    Ok(call.made(result, move |grad| {
        let mut rest = grad.clone();
        let mut grads = Vec::with_capacity(inputs.len());
        for input in &inputs {
            let Some(input) = input else {
                grads.push(None);
                continue;
            };
            let own = (&rest * chosen.broadcast_eq(input)?.to_dtype(rest.dtype())?)?;
            rest = (&rest - &own)?;
            grads.push(Some(reduced(&own, input.dims())?));
        }
        Ok(grads)
    }))
}

fn clip(call: &Call) -> Result<Computed, OpError> {
    let x = call.input(0)?;
    let mut result = x.clone();
    if let Some(least) = call.optional(1) {
        result = result.broadcast_maximum(least)?;
    }
    if let Some(most) = call.optional(2) {
        result = result.broadcast_minimum(most)?;
    }
    let inside = call.tracks(0).then(|| result.eq(x)).transpose()?;
    Ok(call.made_of_first(result, move |grad| match inside {
        Some(inside) => Ok((grad * inside.to_dtype(grad.dtype())?)?),
        None => Ok(grad.clone()),
    }))
}

/// The remainder of integers, with the sign of the divisor.
fn modulo(call: &Call) -> Result<Computed, OpError> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    if a.dtype() != DType::I64 || b.dtype() != DType::I64 {
        return invalid("the remainder is implemented for integers only");
    }
    let dims = common(a.dims(), b.dims())?;
    let full = |t: &Tensor| -> Result<Vec<i64>, OpError> {
        super::integers(&t.broadcast_as(dims.as_slice())?)
    };
    let (a_values, b_values) = (full(a)?, full(b)?);
    let pairs = a_values.iter().zip(&b_values);
    let of_divisor = call.int("fmod", 0) == 0;
    let values = pairs.map(|(&a, &b)| match a.checked_rem(b) {
        Some(rest) if of_divisor && rest != 0 && (rest < 0) != (b < 0) => Some(rest + b),
        rest => rest,
    });
    match values.collect::<Option<Vec<i64>>>() {
        Some(values) => Ok(Tensor::from_vec(values, dims.as_slice(), a.device())?.into()),
        None => invalid("division by zero"),
    }
}
