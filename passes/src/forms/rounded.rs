//! Latents that are cached as integers: what stands between the exact rows of a step and its cache.

use crate::factor::{CacheBits, Rounding};
use crate::forms::builder::Builder;
use crate::forms::layout::Layout;
use crate::forms::names::SiteNames;
use crate::forms::tensors::TensorRange;
use crate::graph::build::int8_zeros;
use crate::onnx::{NodeProto, tensor_proto::DataType};
use crate::recognize::site::Site;
use ndarray::{arr0, s};

const FLOAT: i32 = DataType::Float as i32;

/// How a form caches integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounds {
    /// It does not.
    Never,
    /// With zero at zero: it caches what the exporter's operator is given.
    AboutZero,
    /// About a centre for each channel, which it takes off the rows.
    AboutCentre,
}

/// The initializers of a side that is cached as integers.
struct RoundingRoles {
    /// What one step is worth, [r], fp32; behind the channels stand their second digits.
    scale: &'static str,
    /// What is taken off every row, [r].
    centre: &'static str,
    /// What one step of the channels with a second digit is worth, in the type of the rows.
    first: &'static str,
}

const KEY: RoundingRoles = RoundingRoles {
    scale: "s_k",
    centre: "m_k",
    first: "s_k/first",
};
const VALUE: RoundingRoles = RoundingRoles {
    scale: "s_v",
    centre: "m_v",
    first: "s_v/first",
};

/// The smallest and the largest digit of 4 bits.
const DIGIT: [(&str, f64); 2] = [("digit/least", -8.0), ("digit/most", 7.0)];

impl Layout {
    /// Adds scales and centres of both sides.
    ///
    /// # Errors
    /// [`TensorRange`] where the model's element type cannot hold a centre.
    pub fn add_rounding(
        &mut self,
        names: &SiteNames,
        site: &Site,
        rounding: &Rounding,
    ) -> Result<(), TensorRange> {
        self.bits = rounding.bits;
        for (roles, levels) in [(KEY, &rounding.key), (VALUE, &rounding.value)] {
            let scale = levels.scale.clone().into_dyn();
            self.add(names, roles.scale, FLOAT, &scale)?;
            if levels.second_digits > 0 {
                let own = site.elem_type;
                let first = levels.scale.slice(s![..levels.second_digits]);
                self.add(names, roles.first, own, &first.to_owned().into_dyn())?;
                for (role, end) in DIGIT {
                    let end = arr0(end).into_dyn();
                    self.add_shared(names, (role, &end.to_string()), own, &end)?;
                }
            }
            if let Some(centre) = &levels.centre {
                let centre = centre.clone().into_dyn();
                self.add(names, roles.centre, site.elem_type, &centre)?;
            }
        }
        Ok(())
    }

    /// The ONNX element type of the cache of `site`.
    pub fn cached_type(&self, site: &Site) -> i32 {
        integers(self.bits).unwrap_or(site.elem_type)
    }
}

/// The ONNX element type that holds integers of `bits`; `None` for the model's own type. Two of 4 bits are one byte: even
/// channels in its lower half, odd ones in the upper, each of them plus 8.
pub fn integers(bits: CacheBits) -> Option<i32> {
    match bits {
        CacheBits::Model => None,
        CacheBits::Eight => Some(DataType::Int8.into()),
        CacheBits::Six | CacheBits::Four => Some(DataType::Uint8.into()),
    }
}

impl Builder<'_> {
    /// The rows `rows` [B, T, r] of one side less their centre, where they have one, and the nodes that make them.
    pub fn centred(&self, letter: char, rows: String) -> (Vec<NodeProto>, String) {
        let Some(centre) = self.layout.find(roles(letter).centre) else {
            return (Vec::new(), rows);
        };
        let part = format!("{letter}_BTr/centred");
        let nodes = vec![self.unary("Sub", &part, &[&rows, centre])];
        (nodes, self.name(&part))
    }

    /// The rows `rows` [B, T, r] of one side with the second digits [B, T, r + n] of the first n channels, where these have
    /// some, and the nodes that make them: the first digits as numbers that the cache holds exactly, the other channels, and
    /// what the first digits leave.
    pub fn digits(&mut self, letter: char, rows: String) -> (Vec<NodeProto>, String) {
        let Some(step) = self.layout.find(roles(letter).first).map(str::to_owned) else {
            return (Vec::new(), rows);
        };
        let two = self.facts().shape(&step).and_then(|s| s.first()?.as_i64());
        let [start, middle, end, axis] =
            [0, two.unwrap_or_default(), i64::MAX, 2].map(|n| self.vector(&[n]));
        let part = |what: &str| format!("{letter}_BTr/{what}");
        let name = |what: &str| self.name(&part(what));
        let [least, most] = DIGIT.map(|(role, _)| self.layout.name(role).to_owned());
        let made = |op: &str, what: &str, inputs: &[&str]| self.unary(op, &part(what), inputs);
        let nodes = vec![
            made("Slice", "two_digits", &[&rows, &start, &middle, &axis]),
            made("Slice", "one_digit", &[&rows, &middle, &end, &axis]),
            made("Div", "steps", &[&name("two_digits"), &step]),
            made("Round", "nearest", &[&name("steps")]),
            made("Clip", "first", &[&name("nearest"), &least, &most]),
            made("Mul", "first_digit", &[&name("first"), &step]),
            made(
                "Sub",
                "second_digit",
                &[&name("two_digits"), &name("first_digit")],
            ),
            made(
                "Concat",
                "digits",
                &[
                    &name("first_digit"),
                    &name("one_digit"),
                    &name("second_digit"),
                ],
            )
            .with_int("axis", 2),
        ];
        let digits = name("digits");
        (nodes, digits)
    }

    /// The rows `rows` [B, T, r] of one side as they are cached, and the nodes that make them: as they are, or rounded.
    pub fn rounded(&mut self, letter: char, rows: String) -> (Vec<NodeProto>, String) {
        let Some(scale) = self.layout.find(roles(letter).scale).map(str::to_owned) else {
            return (Vec::new(), rows);
        };
        let (mut nodes, mut rows) = self.centred(letter, rows);
        if self.site.elem_type != FLOAT {
            // Before opset 19 QuantizeLinear takes single precision alone.
            let part = format!("{letter}_BTr/float");
            nodes.push(
                self.unary("Cast", &part, &[&rows])
                    .with_int("to", FLOAT.into()),
            );
            rows = self.name(&part);
        }
        let rank = match letter {
            'k' => self.ranks.key,
            _ => self.ranks.value,
        };
        let zeros = self.constant(int8_zeros(rank));
        let part = format!("{letter}_BTr/int8");
        let quantize = self.unary("QuantizeLinear", &part, &[&rows, &scale, &zeros]);
        nodes.push(quantize.with_int("axis", 2));
        (nodes, self.name(&part))
    }
}

/// The operator `node`, a `GroupQueryAttention`, with a cache of the integers of `layout`; as it is without.
pub fn reading_integers(mut node: NodeProto, layout: &Layout) -> NodeProto {
    let scales = [KEY, VALUE].map(|roles| layout.find(roles.scale));
    let ([Some(key), Some(value)], Some(bits)) = (scales, layout.bits.digit()) else {
        return node;
    };
    // k_scale and v_scale are inputs 12 and 13; what is behind them stays.
    let all = node.input.len().max(14);
    node.input.resize(all, String::new());
    for (input, scale) in node.input.iter_mut().skip(12).zip([key, value]) {
        scale.clone_into(input);
    }
    node.with_int("kv_cache_bit_width", bits.into())
        .with_text("k_quant_type", "PER_CHANNEL")
        .with_text("v_quant_type", "PER_CHANNEL")
}

fn roles(letter: char) -> RoundingRoles {
    match letter {
        'k' => KEY,
        _ => VALUE,
    }
}
