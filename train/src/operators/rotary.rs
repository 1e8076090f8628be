//! RotaryEmbedding of the default domain (opset 23) and of ONNX Runtime's domain.

use candle_core::Tensor;

use crate::error::{OpError, invalid};
use crate::operators::{Call, Computed, TrainOperator, contrib, extent, flows};

pub const OPERATORS: &[TrainOperator] = &[
    flows("RotaryEmbedding", |c| rotary(c, [1, 2, 3])),
    contrib("RotaryEmbedding", |c| rotary(c, [2, 3, 1])),
];

/// Each pair (a, b) of channels becomes (a cos - b sin, b cos + a sin). The gradient is rotated back: da = dy_a cos +
/// dy_b sin, db = dy_b cos - dy_a sin. `places` are the input positions of cos, sin and the position ids.
fn rotary(call: &Call, places: [usize; 3]) -> Result<Computed, OpError> {
    let given = call.input(0)?;
    let [cos, sin, positions] = places;
    let half = call.input(cos)?.dims().last().copied().unwrap_or(0);
    let Heads { x, packed } = Heads::of(call, given, 2 * half)?;
    let length = extent(x.dims(), 2);
    let table = |at: usize| rows(call.input(at)?, call.optional(positions), length);
    let (cos, sin) = (table(cos)?, table(sin)?);
    let turned = Turned {
        half,
        interleaved: call.int("interleaved", 0) != 0 || call.int("rotary_interleaved", 0) != 0,
    };
    let output = packed.restore(&turned.by(&x, &cos, &sin)?)?;
    Ok(call.made_of_first(output, move |grad| {
        let grad = packed.split(grad)?;
        packed.restore(&turned.by(&grad, &cos, &sin.neg()?)?)
    }))
}

/// x as [B, H, T, d], with its original layout.
struct Heads {
    x: Tensor,
    packed: Packed,
}

/// The number of heads, if x was [B, T, H*d].
#[derive(Clone, Copy)]
struct Packed(Option<usize>);

impl Heads {
    /// Without `num_heads`, each head has `size` channels, all of which are rotated.
    fn of(call: &Call, x: &Tensor, size: usize) -> Result<Self, OpError> {
        let said = usize::try_from(call.int("num_heads", 0)).unwrap_or(0);
        let heads = match said {
            0 => extent(x.dims(), 2) / size.max(1),
            said => said,
        };
        let packed = match (x.rank(), heads) {
            (4, _) => Packed(None),
            (3, 1..) => Packed(Some(heads)),
            _ => return invalid("rank 3 or 4 is expected"),
        };
        Ok(Self {
            x: packed.split(x)?,
            packed,
        })
    }
}

impl Packed {
    fn split(self, x: &Tensor) -> Result<Tensor, OpError> {
        let (Some(heads), [batch, length, width]) = (self.0, x.dims()) else {
            return Ok(x.clone());
        };
        let split = x.reshape((*batch, *length, heads, width / heads.max(1)))?;
        Ok(split.transpose(1, 2)?)
    }

    fn restore(self, x: &Tensor) -> Result<Tensor, OpError> {
        let (Some(_), [batch, heads, length, size]) = (self.0, x.dims()) else {
            return Ok(x.clone());
        };
        Ok(x.transpose(1, 2)?
            .reshape((*batch, *length, heads * size))?)
    }
}

/// cos or sin [B or 1, 1, T, d/2]: the rows of the table [positions, d/2] at the position ids, or without these the
/// table [B, T, d/2] itself.
fn rows(table: &Tensor, positions: Option<&Tensor>, length: usize) -> Result<Tensor, OpError> {
    let Some(positions) = positions else {
        return Ok(table.unsqueeze(1)?);
    };
    let width = extent(table.dims(), 1);
    let positions = match positions.elem_count() {
        1 => {
            // A single number is the position of the first token.
            let first = super::integers(positions)?.first().copied().unwrap_or(0);
            let all: Vec<i64> = (first..first + length as i64).collect();
            Tensor::from_vec(all, (1, length), table.device())?
        }
        _ => positions.clone(),
    };
    let batch = extent(positions.dims(), 0);
    let taken = table.index_select(&positions.flatten_all()?, 0)?;
    Ok(taken.reshape((batch, 1, length, width))?)
}

struct Turned {
    /// Number of rotated pairs; the channels after them are not changed.
    half: usize,
    /// Whether pairs are neighbours (0, 1), (2, 3).., instead of (0, half), (1, half + 1)..
    interleaved: bool,
}

impl Turned {
    fn by(&self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor, OpError> {
        let (half, width) = (self.half, extent(x.dims(), 3));
        let turned = x.narrow(3, 0, 2 * half)?;
        let (a, b) = match self.interleaved {
            true => {
                let [batch, heads, length, _] = turned.dims() else {
                    return invalid("rank 4 is expected");
                };
                let pairs = turned
                    .contiguous()?
                    .reshape((*batch, *heads, *length, half, 2))?;
                let side = |at: usize| pairs.narrow(4, at, 1)?.squeeze(4);
                (side(0)?, side(1)?)
            }
            false => (turned.narrow(3, 0, half)?, turned.narrow(3, half, half)?),
        };
        let real = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
        let imaginary = (b.broadcast_mul(cos)? + a.broadcast_mul(sin)?)?;
        let turned = match self.interleaved {
            true => Tensor::stack(&[real, imaginary], 4)?.flatten(3, 4)?,
            false => Tensor::cat(&[real, imaginary], 3)?,
        };
        match width - 2 * half {
            0 => Ok(turned),
            rest => Ok(Tensor::cat(&[turned, x.narrow(3, 2 * half, rest)?], 3)?),
        }
    }
}
