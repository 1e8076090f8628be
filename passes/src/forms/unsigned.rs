//! Products of one token with a cache of 8-bit integers, which read the integers as they are: a cast of the cache would write four
//! bytes for each that it reads.
//!
//! Both operands of `MatMulInteger` are uint8 with the zero point 128, because processors without VNNI saturate sums of products of
//! a uint8 and an int8.
//!
//! ```text
//! q = |q|_max / 127 * (a - 128)                                     one uint8 for each channel of a query
//! p = (a - 128) / 127 + (b - 128) / (127 * 254)                     two of them for each probability, where
//! b - 128 = round((p - (a - 128) / 127) * 127 * 254 + spread)
//! ```
//!
//! Queries lose what keys lose: half of a 127th of their largest channel. Probabilities of many tokens may all be smaller than the
//! last digit: `spread`, which is between -1/2 and 1/2 and different for every token, makes their sum right.
//!
//! Probabilities that are NaN, because no token is visible and the exporter has no guard, become numbers.

use bytes::Bytes;
use ndarray::arr0;

use crate::forms::builder::Builder;
use crate::forms::layout::Layout;
use crate::forms::names::SiteNames;
use crate::forms::past::Past;
use crate::forms::tensors::TensorRange;
use crate::graph::build::{floats, node, uint8};
use crate::onnx::{NodeProto, TensorProto, tensor_proto::DataType};
use crate::recognize::site::{Side, Site};

/// The uint8 that stands for zero.
pub const ZERO_POINT: u8 = 128;

/// The largest integer, counted from the zero point.
const LARGEST: f32 = 127.0;

/// The second digit of a probability counts in these parts of the first.
const SECOND: f32 = 254.0;

/// The unit of a query of zeros.
const LEAST: f32 = 1e-30;

const FLOAT: i32 = DataType::Float as i32;

impl Layout {
    /// Whether the cache holds uint8 numbers with the zero point 128.
    pub fn has_unsigned(&self) -> bool {
        self.find(zero_role('k')).is_some()
    }

    /// Adds the zero points of both sides in the element types of the products.
    ///
    /// # Errors
    /// None: every type of floats holds 128.
    pub fn add_zero_points(&mut self, names: &SiteNames, site: &Site) -> Result<(), TensorRange> {
        let zero = arr0(f64::from(ZERO_POINT)).into_dyn();
        for (letter, side) in [('k', &site.key), ('v', &site.value)] {
            let content = (zero_role(letter), &*ZERO_POINT.to_string());
            self.add_shared(names, content, side.product_type, &zero)?;
        }
        Ok(())
    }
}

impl Builder<'_> {
    /// The nodes that make `part`: the integers `latent` of `side` in the element type of the product. `DequantizeLinear` in front of
    /// a transpose would make ONNX Runtime round once more behind it.
    pub fn signed(&self, side: &Side, letter: char, part: &str, latent: &str) -> [NodeProto; 2] {
        let cast = format!("{part}/uint8");
        let zero = self.layout.name(zero_role(letter));
        [
            self.unary("Cast", &cast, &[latent])
                .with_int("to", side.product_type.into()),
            self.unary("Sub", part, &[&self.name(&cast), zero]),
        ]
    }

    /// The nodes that make `to` in the element type `elem_type`: `last`, which makes it in fp32, and a cast if there has to be one.
    pub fn from_fp32(&self, elem_type: i32, to: &str, mut last: NodeProto) -> Vec<NodeProto> {
        if elem_type == FLOAT {
            return vec![last];
        }
        let between = format!("{}/float", self.name(to));
        last.output = vec![between.clone()];
        last.name = Some(between.clone());
        let cast = self.unary("Cast", to, &[&between]);
        vec![last, cast.with_int("to", elem_type.into())]
    }

    fn zero_point(&mut self) -> String {
        self.constant(uint8(&[], ZERO_POINT))
    }

    fn to_fp32(&self, elem_type: i32, part: &str) -> (Option<NodeProto>, String) {
        let value = self.name(part);
        if elem_type == FLOAT {
            return (None, value);
        }
        let part = format!("{part}/float");
        let cast = self.unary("Cast", &part, &[&value]);
        (Some(cast.with_int("to", FLOAT.into())), self.name(&part))
    }

    /// The nodes of `q_B1x1`, what one integer of each query counts, and of `q_B1xr/units`, the queries in these units, from -127
    /// to 127: both in fp32.
    fn queries_in_units(&mut self) -> Vec<NodeProto> {
        let (casting, queries) = self.to_fp32(self.site.key.product_type, "q_B1xr");
        let one = self.vector(&[1]);
        // A query of zeros is divided by the smallest number.
        let [part, least] = [1.0 / LARGEST, LEAST].map(|n| self.constant(floats(&[], &[n])));
        let [sizes, most, channel, unit] = [
            "q_B1xr/sizes",
            "q_B1x1/most",
            "q_B1x1/channel",
            "q_B1x1/unit",
        ]
        .map(|part| self.name(part));
        // The axes of `ReduceMax` are an attribute before opset 18 and an input since.
        let largest = node("TopK", &most, &[&sizes, &one], &[&most, &channel]);
        let mut nodes: Vec<NodeProto> = casting.into_iter().collect();
        nodes.extend([
            self.unary("Abs", "q_B1xr/sizes", &[&queries]),
            largest,
            self.unary("Mul", "q_B1x1/unit", &[&most, &part]),
            self.unary("Max", "q_B1x1", &[&unit, &least]),
            self.unary("Div", "q_B1xr/units", &[&queries, &self.name("q_B1x1")]),
        ]);
        nodes
    }

    /// The nodes that round the queries `q_B1xr` as [`Self::integer_score`] does, and the name of the result.
    pub fn rounded_queries(&mut self) -> (Vec<NodeProto>, String) {
        let rounded = "q_B1xr/rounded";
        let [units, nearest] = ["q_B1xr/units", "q_B1xr/nearest"].map(|part| self.name(part));
        let mut nodes = self.queries_in_units();
        nodes.push(self.unary("Round", "q_B1xr/nearest", &[&units]));
        let product = self.unary("Mul", rounded, &[&nearest, &self.name("q_B1x1")]);
        nodes.extend(self.from_fp32(self.site.key.product_type, rounded, product));
        (nodes, self.name(rounded))
    }

    /// The nodes that compute `score_B1xS` of one new token from the queries `q_B1xr` and the integers `latent` [B, 1, S, r].
    pub fn integer_score(&mut self, latent: &str) -> Vec<NodeProto> {
        let turn = |n: NodeProto| n.with_ints("perm", &[0, 1, 3, 2]);
        let (one, zero) = (self.constant(floats(&[], &[1.0])), self.zero_point());
        let mut nodes = self.queries_in_units();
        let name = |part: &str| self.name(part);
        nodes.extend([
            self.unary(
                "QuantizeLinear",
                "q_B1xr/uint8",
                &[&name("q_B1xr/units"), &one, &zero],
            ),
            turn(self.unary("Transpose", "q_B1rx", &[&name("q_B1xr/uint8")])),
            self.unary(
                "MatMulInteger",
                "score_B1Sx/integers",
                &[latent, &name("q_B1rx"), &zero, &zero],
            ),
            self.unary("Cast", "score_B1Sx", &[&name("score_B1Sx/integers")])
                .with_int("to", FLOAT.into()),
            turn(self.unary("Transpose", "score_B1xS/units", &[&name("score_B1Sx")])),
        ]);
        let product = self.unary(
            "Mul",
            "score_B1xS",
            &[&name("score_B1xS/units"), &name("q_B1x1")],
        );
        nodes.extend(self.from_fp32(self.site.key.product_type, "score_B1xS", product));
        nodes
    }

    /// The nodes that compute `out_B1xr` of one new token from the probabilities `p_B1xS` and the integers `latent` [B, 1, S, r].
    /// `spread` is the result of [`Self::spread`].
    pub fn integer_values(&mut self, latent: &str, spread: &str) -> Vec<NodeProto> {
        let (casting, p) = self.to_fp32(self.site.value.product_type, "p_B1xS");
        let zero = self.zero_point();
        let [first, second] =
            [1.0 / LARGEST, 1.0 / LARGEST / SECOND].map(|step| self.constant(floats(&[], &[step])));
        let digits = self.constant(digits(self.site.heads));
        let name = |part: &str| self.name(&format!("p_B1xS/{part}"));
        let made = |op: &str, part: &str, inputs: &[&str]| {
            self.unary(op, &format!("p_B1xS/{part}"), inputs)
        };
        let mut nodes: Vec<NodeProto> = casting.into_iter().collect();
        nodes.extend([
            made("QuantizeLinear", "first", &[&p, &first, &zero]),
            made("DequantizeLinear", "read", &[&name("first"), &first, &zero]),
            made("Sub", "rest", &[&p, &name("read")]),
            made("Add", "spread", &[&name("rest"), spread]),
            made(
                "QuantizeLinear",
                "second",
                &[&name("spread"), &second, &zero],
            ),
            made("Concat", "digits", &[&name("first"), &name("second")]).with_int("axis", 2),
            self.unary(
                "MatMulInteger",
                "out_B1yr/integers",
                &[&name("digits"), latent, &zero, &zero],
            ),
            self.unary("Cast", "out_B1yr", &[&self.name("out_B1yr/integers")])
                .with_int("to", FLOAT.into()),
        ]);
        let sum = self.unary("MatMul", "out_B1xr", &[&digits, &self.name("out_B1yr")]);
        nodes.extend(self.from_fp32(self.site.value.product_type, "out_B1xr", sum));
        nodes
    }

    /// For each of the S cached rows a number of its own between -1/2 and 1/2 of what the second digit of a probability counts: [S]. `tokens` is the number
    /// of new tokens. Neighbours differ by the golden ratio, so that the numbers of any tokens are spread evenly.
    pub fn spread(&mut self, past: &mut Past, tokens: &str) -> String {
        let rows = self.cached_rows(past, tokens);
        let [zero, one, ratio, whole] = [0, 1, 40_503, 65_536].map(|n| self.scalar(n));
        let step = 1.0 / LARGEST / SECOND;
        let part = self.constant(floats(&[], &[step / 65_536.0]));
        let half = self.constant(floats(&[], &[step / 2.0]));
        let all = self.measure(past, "Range", "spread/rows_S", &[&zero, &rows, &one]);
        let turned = self.measure(past, "Mul", "spread/turned_S", &[&all, &ratio]);
        let rest = self.measure(past, "Mod", "spread/rest_S", &[&turned, &whole]);
        let rest = self.measure_as(past, FLOAT, "spread/float_S", &rest);
        let positive = self.measure(past, "Mul", "spread/positive_S", &[&rest, &part]);
        self.measure(past, "Sub", "spread/S", &[&positive, &half])
    }
}

fn zero_role(letter: char) -> &'static str {
    match letter {
        'k' => "zero_k",
        _ => "zero_v",
    }
}

/// The fp32 matrix [H, 2 H] that adds the products with the second digits of H heads to those with the first.
fn digits(heads: usize) -> TensorProto {
    let weight = |row: usize, column: usize| match column {
        _ if column == row => 1.0 / LARGEST,
        _ if column == row + heads => 1.0 / LARGEST / SECOND,
        _ => 0.0,
    };
    let all = (0..heads).flat_map(|row| (0..2 * heads).map(move |column| weight(row, column)));
    let bytes: Vec<u8> = all.flat_map(f32::to_le_bytes).collect();
    TensorProto {
        name: Some(format!("mla/digits[{heads}]")),
        dims: vec![heads as i64, 2 * heads as i64],
        data_type: Some(FLOAT),
        raw_data: Some(Bytes::from(bytes)),
        ..TensorProto::default()
    }
}
