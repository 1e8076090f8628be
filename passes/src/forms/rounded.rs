//! Latents that are cached as integers: the nodes between the latent rows of a step and the cache.

use crate::factor::{CacheBits, Rounding};
use crate::forms::builder::Builder;
use crate::forms::layout::Layout;
use crate::forms::names::SiteNames;
use crate::forms::tensors::TensorRange;
use crate::forms::unsigned::ZERO_POINT;
use crate::graph::build::{floats, int8_zeros, uint8};
use crate::onnx::{NodeProto, tensor_proto::DataType};
use crate::recognize::site::Site;
use ndarray::{Array1, arr0, s};

const FLOAT: i32 = DataType::Float as i32;

/// How a form caches integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounds {
    /// The form does not cache integers.
    Never,
    /// Without a centre, because the cached rows are inputs of the exporter's operator.
    AboutZero,
    /// With a centre for each channel, which the form subtracts from the rows.
    AboutCentre,
    /// The same, but as unsigned integers, which products read as they are.
    Unsigned,
}

impl Rounds {
    /// Whether the form subtracts a centre from the rows of each channel.
    #[must_use]
    pub fn has_centres(self) -> bool {
        matches!(self, Self::AboutCentre | Self::Unsigned)
    }

    /// The ONNX element type of caches of integers of `bits`; `None` for the model's own type. A uint8 holds an integer of 8 bits
    /// plus 128, or two 4-bit integers, each plus 8: the even channel in the lower half, the odd one in the upper.
    #[must_use]
    pub fn element_type(self, bits: CacheBits) -> Option<i32> {
        match (bits, self) {
            (CacheBits::Model, _) => None,
            (CacheBits::Six | CacheBits::Four, _) | (_, Self::Unsigned) => {
                Some(DataType::Uint8.into())
            }
            (CacheBits::Eight, _) => Some(DataType::Int8.into()),
        }
    }
}

/// The roles of the initializers of one side that is cached as integers.
struct RoundingRoles {
    /// The scales of the channels, followed by those of the second digits, [r + n], fp32.
    scale: &'static str,
    /// The centres of the channels, [r], or [G, 1, d] for several heads.
    centre: &'static str,
    /// The scales of the first digits of channels with a second digit, [n] or [G, 1, n], in the element type of the rows.
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

/// The smallest and the largest 4-bit integer, as shared constants.
const DIGIT: [(&str, f64); 2] = [("digit/least", -8.0), ("digit/most", 7.0)];

impl Layout {
    /// Adds the scales and centres of both sides.
    ///
    /// # Errors
    /// [`TensorRange`] if a centre is out of the range of the model's element type.
    pub fn add_rounding(
        &mut self,
        names: &SiteNames,
        site: &Site,
        rounding: &Rounding,
    ) -> Result<(), TensorRange> {
        self.bits = rounding.bits;
        self.rounded_heads = rounding.heads;
        // What belongs to the rows [B, G, T, d] of several heads has the shape [G, 1, d].
        let by_head = |values: &Array1<f64>, taken: usize| {
            let heads = rounding.heads.max(1);
            let each = values.len() / heads;
            let all = values.to_shape((heads, 1, each)).map(|all| all.to_owned());
            let all = all
                .unwrap_or_default()
                .slice_move(s![.., .., ..taken.min(each)]);
            match heads {
                1 => all.flatten().to_owned().into_dyn(),
                _ => all.into_dyn(),
            }
        };
        for (roles, levels) in [(KEY, &rounding.key), (VALUE, &rounding.value)] {
            let scale = levels.scale.clone().into_dyn();
            self.add(names, roles.scale, FLOAT, &scale)?;
            if levels.second_digits > 0 {
                let own = site.elem_type;
                let first = by_head(&levels.scale, levels.second_digits);
                self.add(names, roles.first, own, &first)?;
                for (role, end) in DIGIT {
                    let end = arr0(end).into_dyn();
                    self.add_shared(names, (role, &end.to_string()), own, &end)?;
                }
            }
            if let Some(centre) = &levels.centre {
                let centre = by_head(centre, centre.len());
                self.add(names, roles.centre, site.elem_type, &centre)?;
            }
        }
        Ok(())
    }

    /// The ONNX element type of the cache of `site`.
    pub fn cached_type(&self, site: &Site) -> i32 {
        self.integers.unwrap_or(site.elem_type)
    }
}

impl Builder<'_> {
    /// `rows` [B, T, r] or [B, G, T, d] of one side minus the centre, if there is one: the nodes that compute it, and its name.
    pub fn centred(&self, letter: char, rows: String) -> (Vec<NodeProto>, String) {
        let Some(centre) = self.layout.find(roles(letter).centre) else {
            return (Vec::new(), rows);
        };
        let part = format!("{letter}_BTr/centred");
        let nodes = vec![self.unary("Sub", &part, &[&rows, centre])];
        (nodes, self.name(&part))
    }

    /// `rows` [B, T, r] or [B, G, T, d] of one side with second digits appended, n more channels, if the first n channels have
    /// them: the nodes and the name of the result. It contains the first digits rescaled to numbers that the cache represents
    /// exactly, the channels with one digit, and the rounding errors of the first digits.
    pub fn digits(&mut self, letter: char, rows: String) -> (Vec<NodeProto>, String) {
        let Some(step) = self.layout.find(roles(letter).first).map(str::to_owned) else {
            return (Vec::new(), rows);
        };
        let two = self.facts().shape(&step).and_then(|s| s.last()?.as_i64());
        let [start, middle, end, axis] =
            [0, two.unwrap_or_default(), i64::MAX, -1].map(|n| self.vector(&[n]));
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
            .with_int("axis", -1),
        ];
        let digits = name("digits");
        (nodes, digits)
    }

    /// `rows` [B, T, r] of one side as they are cached, rounded if the cache holds integers: the nodes and the name of
    /// the result.
    pub fn rounded(&mut self, letter: char, rows: String) -> (Vec<NodeProto>, String) {
        let Some(scale) = self.layout.find(roles(letter).scale).map(str::to_owned) else {
            return (Vec::new(), rows);
        };
        let (mut nodes, rows) = self.centred(letter, rows);
        // Before opset 19, `QuantizeLinear` accepts only fp32.
        let (casting, rows) = self.in_fp32(letter, &rows);
        nodes.extend(casting);
        let rank = match letter {
            'k' => self.ranks.key,
            _ => self.ranks.value,
        };
        let (kind, zero_points) = match self.layout.has_unsigned() {
            true => ("uint8", uint8(&[rank as i64], ZERO_POINT)),
            false => ("int8", int8_zeros(rank)),
        };
        let zeros = self.constant(zero_points);
        let part = format!("{letter}_BTr/{kind}");
        let quantize = self.unary("QuantizeLinear", &part, &[&rows, &scale, &zeros]);
        nodes.push(quantize.with_int("axis", 2));
        (nodes, self.name(&part))
    }

    fn in_fp32(&self, letter: char, rows: &str) -> (Option<NodeProto>, String) {
        if self.site.elem_type == FLOAT {
            return (None, rows.to_owned());
        }
        let part = format!("{letter}_BTr/float");
        let cast = self.unary("Cast", &part, &[rows]);
        (Some(cast.with_int("to", FLOAT.into())), self.name(&part))
    }

    /// Many `rows` [B, T, r] of one side as elements of the cache [B, T, c], as `GroupQueryAttention` rounds and packs them:
    /// the nodes and the name of the result. `QuantizeLinear` takes 26 ns an element on ONNX Runtime's CPU provider, where the
    /// scales are along the last axis; these nodes take a fifth.
    pub fn codes(&mut self, letter: char, rows: &str) -> (Vec<NodeProto>, String) {
        let scale = self.layout.find(roles(letter).scale).map(str::to_owned);
        let (Some(scale), Some(digit)) = (scale, self.layout.bits.digit()) else {
            return (Vec::new(), rows.to_owned());
        };
        let half = 2f32.powi(digit as i32 - 1);
        let [least, most] = [-half, half - 1.0].map(|end| self.constant(floats(&[], &[end])));
        let part = |what: &str| format!("{letter}_BTr/codes/{what}");
        let name = |what: &str| self.name(&part(what));
        let made = |op: &str, what: &str, inputs: &[&str]| self.unary(op, &part(what), inputs);
        let (casting, rows) = self.in_fp32(letter, rows);
        let mut nodes: Vec<NodeProto> = casting.into_iter().collect();
        nodes.extend([
            made("Div", "steps", &[&rows, &scale]),
            made("Round", "nearest", &[&name("steps")]),
            made("Clip", "digit", &[&name("nearest"), &least, &most]),
        ]);
        let (mut whole, mut elem_type) = (name("digit"), DataType::Int8);
        if digit == 4 {
            let packed = self.packed(&format!("{letter}_BTr/codes"), &whole);
            nodes.extend(packed);
            (whole, elem_type) = (self.name(&part("byte")), DataType::Uint8);
        }
        let cast = self.unary("Cast", &part("integers"), &[&whole]);
        nodes.push(cast.with_int("to", elem_type as i64));
        (nodes, self.name(&part("integers")))
    }

    /// The nodes of `<part>/byte` [B, T, c / 2]: each pair of 4-bit integers a and b of `digits` [B, T, c] as the number
    /// (a + 8) + 16 (b + 8) = a + 16 b + 136.
    fn packed(&mut self, part: &str, digits: &str) -> [NodeProto; 4] {
        let (pairs, last) = (self.vector(&[0, 0, -1, 2]), self.vector(&[3]));
        let places = self.constant(floats(&[2], &[1.0, 16.0]));
        let zero = self.constant(floats(&[], &[136.0]));
        let part = |what: &str| format!("{part}/{what}");
        let name = |what: &str| self.name(&part(what));
        let made = |op: &str, what: &str, inputs: &[&str]| self.unary(op, &part(what), inputs);
        [
            made("Reshape", "pairs", &[digits, &pairs]),
            made("Mul", "placed", &[&name("pairs"), &places]),
            made("ReduceSum", "sum", &[&name("placed"), &last]).with_int("keepdims", 0),
            made("Add", "byte", &[&name("sum"), &zero]),
        ]
    }
}

/// `node`, a `GroupQueryAttention`, with the scales and attributes for a cache of integers, if `layout` has integers.
pub fn reading_integers(mut node: NodeProto, layout: &Layout) -> NodeProto {
    let scales = [KEY, VALUE].map(|roles| layout.find(roles.scale));
    let ([Some(key), Some(value)], Some(bits)) = (scales, layout.bits.digit()) else {
        return node;
    };
    // k_scale and v_scale are inputs 12 and 13; further inputs are kept.
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
