//! The option for the number of bits of a cached number.

use clap::ValueEnum;
use gqa2mla_passes::factor::CacheBits;

/// Bits of a cached number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BitsArg {
    /// The model's own floating-point type.
    #[value(name = "16")]
    Model,
    /// 8-bit integers.
    #[value(name = "8")]
    Eight,
    /// 6 bits on average: two 4-bit integers for half of the channels, one for the others.
    #[value(name = "6")]
    Six,
    /// 4-bit integers, two in each byte.
    #[value(name = "4")]
    Four,
}

impl From<BitsArg> for CacheBits {
    fn from(bits: BitsArg) -> Self {
        match bits {
            BitsArg::Model => Self::Model,
            BitsArg::Eight => Self::Eight,
            BitsArg::Six => Self::Six,
            BitsArg::Four => Self::Four,
        }
    }
}
