//! Quantized weights, which are frozen and dequantized to fp32 once; gradients flow through products with them. Rounding of
//! activations to integers: gradients pass straight through it.

use candle_core::{DType, Device, Tensor};
use gqa2mla_passes::graph::label;
use gqa2mla_passes::onnx::NodeProto;

use crate::error::{OpError, invalid};
use crate::kernels::{map, zip};
use crate::operators::{Call, Computed, TrainOperator, axis, extent, flows, missing};

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
];

/// Expands `MatMulNBits` into the unpacking of its weight, which constant folding computes once, and a product. `None`
/// for other nodes.
#[must_use]
pub fn lowered(node: &NodeProto) -> Option<Vec<NodeProto>> {
    if node.domain() != "com.microsoft" || node.op_type() != "MatMulNBits" {
        return None;
    }
    let input = |at: usize| node.input.get(at).cloned().unwrap_or_default();
    let weight = format!("{}/weight", label(node));
    let named = |op: &str, domain: &str, inputs: Vec<String>, output: &str| NodeProto {
        op_type: Some(op.to_owned()),
        domain: Some(domain.to_owned()),
        name: Some(format!("{}/{op}", label(node))),
        input: inputs,
        output: vec![output.to_owned()],
        ..NodeProto::default()
    };
    let output = node.output.first()?;
    let bias = input(5);
    let product = match bias.is_empty() {
        true => output.clone(),
        false => format!("{}/product", label(node)),
    };
    let mut unpack = named(
        UNPACK,
        OWN,
        vec![input(1), input(2), input(3), input(4)],
        &weight,
    );
    unpack.attribute.clone_from(&node.attribute);
    let mut nodes = vec![
        unpack,
        named("MatMul", "", vec![input(0), weight], &product),
    ];
    if !bias.is_empty() {
        nodes.push(named("Add", "", vec![product, bias], output));
    }
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

/// A scale or zero point of `call` in fp32, in the shape that broadcasts along its axis.
fn along(call: &Call, values: &Tensor) -> Result<Tensor, OpError> {
    if call.int("block_size", 0) != 0 {
        return invalid("scales in blocks are not implemented");
    }
    let x = call.input(0)?;
    let values = values.to_dtype(DType::F32)?;
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
