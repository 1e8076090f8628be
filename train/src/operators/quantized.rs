//! Quantized weights, which are frozen and dequantized to fp32 once; gradients flow through products with them. Rounding of
//! activations to integers: gradients pass straight through it.

use candle_core::{DType, Device, Tensor};
use gqa2mla_passes::graph::build;
use gqa2mla_passes::onnx::{NodeProto, tensor_proto::DataType};

use crate::error::{OpError, invalid};
use crate::kernels::{map, zip};
use crate::operators::indexed::indices;
use crate::operators::{
    Call, Computed, Pull, TrainOperator, axis, extent, first_flows, flows, missing,
};

/// The domain of internal operators.
const OWN: &str = "gqa2mla.train";
const UNPACK: &str = "UnpackNBits";

pub const OPERATORS: &[TrainOperator] = &[
    TrainOperator {
        domain: OWN,
        ..missing(UNPACK, unpack)
    },
    flows("DequantizeLinear", dequantize),
    flows("QuantizeLinear", quantize),
    first_flows("DynamicQuantizeLinear", quantize_to_range),
];

/// Expands products with integer weights into primitives, of which constant folding computes those of the weight once: the
/// unpacking of `MatMulNBits`, or the differences of the factors of `MatMulInteger` from their zero points. `None` for other
/// nodes.
#[must_use]
pub fn lowered(node: &NodeProto) -> Option<Vec<NodeProto>> {
    match (node.domain(), node.op_type()) {
        ("com.microsoft", "MatMulNBits") => packed(node),
        ("" | "ai.onnx", "MatMulInteger") => integers(node),
        _ => None,
    }
}

/// The operator `op` in place of `node`, and the name of its output, which begins with that of the first output of `node`: names
/// of outputs are unique, names of nodes need not be.
fn part(node: &NodeProto, part: &str, op: &str, inputs: &[&str]) -> (NodeProto, String) {
    let output = node.output.first().map_or("", String::as_str);
    let name = format!("{output}/training/{part}");
    (build::node(op, &name, inputs, &[&name]), name)
}

fn packed(node: &NodeProto) -> Option<Vec<NodeProto>> {
    let input = |at: usize| node.input.get(at).map_or("", String::as_str);
    let output = node.output.first()?;
    let packed = [input(1), input(2), input(3), input(4)];
    let (mut unpack, weight) = part(node, "weight", UNPACK, &packed);
    unpack.domain = Some(OWN.to_owned());
    unpack.attribute.clone_from(&node.attribute);
    let (mut product, made) = part(node, "product", "MatMul", &[input(0), &weight]);
    let (mut sum, _) = part(node, "sum", "Add", &[&made, input(5)]);
    Some(match input(5) {
        "" => {
            product.output = vec![output.clone()];
            vec![unpack, product]
        }
        _ => {
            sum.output = vec![output.clone()];
            vec![unpack, product, sum]
        }
    })
}

/// (a - a_0) (b - b_0), as fp32.
fn integers(node: &NodeProto) -> Option<Vec<NodeProto>> {
    let mut nodes = Vec::new();
    let mut factors = Vec::new();
    for (at, letter) in ["a", "b"].into_iter().enumerate() {
        let mut as_float = |at: usize, what: &str| {
            let input = node.input.get(at).filter(|name| !name.is_empty())?;
            let (cast, name) = part(node, &format!("{letter}/{what}"), "Cast", &[input]);
            nodes.push(cast.with_int("to", DataType::Float as i64));
            Some(name)
        };
        let (codes, zero) = (as_float(at, "codes")?, as_float(at + 2, "zero"));
        factors.push(match zero {
            None => codes,
            Some(zero) => {
                let (off, name) = part(node, &format!("{letter}/off"), "Sub", &[&codes, &zero]);
                nodes.push(off);
                name
            }
        });
    }
    let factors: Vec<&str> = factors.iter().map(String::as_str).collect();
    let (mut product, _) = part(node, "product", "MatMul", &factors);
    product.output = vec![node.output.first()?.clone()];
    nodes.push(product);
    Some(nodes)
}

/// W [K, N] from packed codes [N, blocks, bytes], scales [N * blocks] and zero points: W = (code - zero) scale.
fn unpack(call: &Call) -> Result<Computed, OpError> {
    if call.optional(3).is_some() {
        return invalid("reordered groups (g_idx) are not implemented");
    }
    let sized = |name: &str, default: i64| usize::try_from(call.int(name, default)).unwrap_or(0);
    let (k, n) = (sized("K", 0), sized("N", 0));
    let (bits, block) = (sized("bits", 4), sized("block_size", 32));
    if !matches!(bits, 2 | 4 | 8) || block == 0 {
        return invalid(format!(
            "{bits} bits in blocks of {block} are not implemented"
        ));
    }
    let blocks = k.div_ceil(block);
    let codes: Vec<u8> = call.input(0)?.flatten_all()?.to_vec1()?;
    let scales: Vec<f32> = call.input(1)?.flatten_all()?.to_vec1()?;
    let stored = n.checked_mul(blocks);
    if k == 0 || stored != Some(scales.len()) {
        return invalid(format!(
            "{} scales are not those of a weight of {k} x {n} in blocks of {block}",
            scales.len()
        ));
    }
    let code = |bytes: &[u8], at: usize| {
        let byte = bytes.get(at * bits / 8).copied().unwrap_or(0);
        (u32::from(byte) >> (at * bits % 8)) & ((1 << bits) - 1)
    };
    let zeros: Vec<f32> = match call.optional(2) {
        None => vec![(1u32 << (bits - 1)) as f32; n * blocks],
        Some(zeros) if zeros.dtype() == DType::F32 => zeros.flatten_all()?.to_vec1()?,
        Some(zeros) => {
            let packed: Vec<u8> = zeros.flatten_all()?.to_vec1()?;
            let row = (blocks * bits).div_ceil(8).max(1);
            let rows = packed.chunks(row);
            rows.flat_map(|row| (0..blocks).map(move |at| code(row, at) as f32))
                .collect()
        }
    };
    let bytes = (block * bits / 8).max(1);
    let mut weight = vec![0f32; n * k];
    let rows = weight
        .chunks_mut(k.max(1))
        .zip(codes.chunks(blocks * bytes));
    let groups = scales.chunks(blocks).zip(zeros.chunks(blocks));
    for ((row, codes), (scales, zeros)) in rows.zip(groups) {
        let parts = row.chunks_mut(block).zip(codes.chunks(bytes));
        for ((part, codes), (scale, zero)) in parts.zip(scales.iter().zip(zeros)) {
            for (at, weight) in part.iter_mut().enumerate() {
                *weight = (code(codes, at) as f32 - zero) * scale;
            }
        }
    }
    Ok(Tensor::from_vec(weight, (n, k), &Device::Cpu)?.t()?.into())
}

/// y = (x - zero point) scale, with one scale for all elements or one per index of an axis.
fn dequantize(call: &Call) -> Result<Computed, OpError> {
    let mut y = call.input(0)?.to_dtype(DType::F32)?;
    if let Some(zero) = call.optional(2) {
        y = y.broadcast_sub(&along(call, zero)?)?;
    }
    let scale = along(call, call.input(1)?)?;
    let y = y.broadcast_mul(&scale)?;
    Ok(call.made_of_first(y, move |grad| Ok(grad.broadcast_mul(&scale)?)))
}

/// y = round(x / scale) + zero point, limited to the integers of 8 bits, as fp32. The gradient is that of x / scale, and 0
/// where y is limited (a straight-through estimator).
fn quantize(call: &Call) -> Result<Computed, OpError> {
    let scale = along(call, call.input(1)?)?;
    // Int8 is read as I64, uint8 as U8; the compilation refuses other types.
    let (least, most) = match call.optional(2).map(Tensor::dtype) {
        Some(DType::I64) => (-128.0, 127.0),
        _ => (0.0, 255.0),
    };
    let mut exact = call.input(0)?.to_dtype(DType::F32)?.broadcast_div(&scale)?;
    if let Some(zero) = call.optional(2) {
        // The zero point is an integer: rounding before or after it is the same.
        exact = exact.broadcast_add(&along(call, zero)?)?;
    }
    let y = map(&exact, |x| x.round_ties_even().clamp(least, most))?;
    Ok(call.made_of_first(y, move |grad| {
        let passed = zip(grad, &exact, |g, x| {
            if (least..=most).contains(&x) { g } else { 0.0 }
        })?;
        Ok(passed.broadcast_div(&scale)?)
    }))
}

/// x, rounded to 256 levels over its range, which 0 is within: the integers as fp32, their scale, and their zero point. The
/// gradient of the integers is that of x / scale (a straight-through estimator); scale and zero point have none.
fn quantize_to_range(call: &Call) -> Result<Computed, OpError> {
    let x = call.input(0)?;
    let values: Vec<f32> = x.flatten_all()?.to_vec1()?;
    let (least, most) = values.iter().fold((0f32, 0f32), |(least, most), &v| {
        (least.min(v), most.max(v))
    });
    let scale = match most > least {
        true => (most - least) / 255.0,
        false => 1.0,
    };
    let zero = (-least / scale).round_ties_even().clamp(0.0, 255.0);
    let y = map(x, |v| {
        ((v / scale).round_ties_even() + zero).clamp(0.0, 255.0)
    })?;
    let [scale, zero] = [scale, zero].map(|value| Tensor::new(value, x.device()));
    let (scale, zero) = (scale?, zero?);
    let step = scale.clone();
    let pull: Option<Pull> = call.tracks(0).then(|| -> Pull {
        Box::new(move |grads| match grads.first().and_then(Option::as_ref) {
            Some(grad) => Ok(vec![Some(grad.broadcast_div(&step)?)]),
            None => Ok(Vec::new()),
        })
    });
    Ok(Computed {
        outputs: vec![y, scale, zero],
        pull,
    })
}

/// The scale or zero point of every element of a tensor of shape `dims`, from one of each `block` elements along axis `at`.
fn in_blocks(
    values: &Tensor,
    at: usize,
    (block, dims): (usize, &[usize]),
) -> Result<Tensor, OpError> {
    let places = (0..extent(dims, at)).map(|place| (place / block) as i64);
    Ok(values
        .contiguous()?
        .index_select(&indices(places.collect())?, at)?)
}

/// A scale or zero point of `call` in fp32, in the shape that broadcasts along its axis.
fn along(call: &Call, values: &Tensor) -> Result<Tensor, OpError> {
    let x = call.input(0)?;
    let values = values.to_dtype(DType::F32)?;
    let block = usize::try_from(call.int("block_size", 0)).unwrap_or(0);
    if block != 0 {
        return in_blocks(
            &values,
            axis(call.int("axis", 1), x.rank())?,
            (block, x.dims()),
        );
    }
    if values.elem_count() == 1 {
        return Ok(values.reshape(())?);
    }
    let at = axis(call.int("axis", 1), x.rank().max(2))?;
    let dims = (0..x.rank()).map(|axis| match axis == at {
        true => extent(values.dims(), 0),
        false => 1,
    });
    Ok(values.reshape(dims.collect::<Vec<_>>())?)
}
