//! Bits of a cached number, as the command line names them.

use clap::ValueEnum;
use gqa2mla_passes::factor::CacheBits;

/// Bits of a cached number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BitsArg {
    /// The model's own floating-point type.
    #[value(name = "16")]
    Model,
    /// Integers.
    #[value(name = "8")]
    Eight,
    /// Integers: two digits of 4 bits of the half of the channels that matters more, one of the others.
    #[value(name = "6")]
    Six,
    /// Integers, two to a byte.
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
