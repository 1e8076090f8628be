//! The methods of a comparison: each a factorization with a form, and the bits that it is tried with.

use std::fmt;

use gqa2mla_passes::factor::CacheBits;
use gqa2mla_passes::forms::{GroupedQuery, KeptHeads, RebasedHeads};
use gqa2mla_passes::{Absorbed, Decoupled, Expanded, Form, Joint};

use crate::fit::factors::Factorization;

/// A method: a factorization combined with a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Factors from the weights only.
    Weights,
    /// Unweighted principal components of the cached rows.
    Plain,
    /// Principal components weighted by queries and o_proj.
    Weighted,
    /// Weighted principal components with bias correction of the means.
    Calibrated,
    /// As `Calibrated`, then local reconstruction.
    Reconstructed,
    /// As `Calibrated`, in the expanded form.
    Expanded,
    /// As `Calibrated`, in the expanded form, then local reconstruction.
    ExpandedReconstructed,
    /// As `Calibrated`, with one latent of keys and values, in the joint form.
    Joint,
    /// TransMLA, in its own cache layout.
    TransMla,
    /// The KV heads without a latent, as integers of the model's own operator.
    KeptHeads,
}

impl Way {
    /// All methods in the order of their cost, followed by TransMLA and the heads without a latent for comparison.
    pub const ALL: [Self; 10] = [
        Self::Weights,
        Self::Plain,
        Self::Weighted,
        Self::Calibrated,
        Self::Reconstructed,
        Self::Expanded,
        Self::ExpandedReconstructed,
        Self::Joint,
        Self::TransMla,
        Self::KeptHeads,
    ];

    /// The name on the command line and in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Plain => "plain",
            Self::Weighted => "weighted",
            Self::Calibrated => "calibrated",
            Self::Reconstructed => "reconstructed",
            Self::Expanded => "expanded",
            Self::ExpandedReconstructed => "expanded-reconstructed",
            Self::Joint => "joint",
            Self::TransMla => "transmla",
            Self::KeptHeads => "kept-heads",
        }
    }

    /// A description in one line.
    #[must_use]
    pub fn description(self) -> &'static str {
        match self {
            Self::Weights => "Factors from the weights alone",
            Self::Plain => "Unweighted principal components of what is cached",
            Self::Weighted => "Weighted by queries and o_proj",
            Self::Calibrated => "Weighted, with means given back",
            Self::Reconstructed => "Calibrated, then reconstructed layer by layer",
            Self::Expanded => "Calibrated, in the expanded form",
            Self::ExpandedReconstructed => "The same, reconstructed layer by layer",
            Self::Joint => "Calibrated, with one latent of keys and values",
            Self::TransMla => "TransMLA's recipe, in its own cache layout",
            Self::KeptHeads => "No latent: the heads as integers of GroupQueryAttention",
        }
    }

    pub(super) fn factorization(self, fold: usize) -> Factorization {
        match self {
            Self::Weights => Factorization::Weights,
            Self::Plain => Factorization::Plain,
            Self::Weighted => Factorization::Weighted,
            Self::TransMla => Factorization::TransMla { fold },
            _ => Factorization::Calibrated,
        }
    }

    /// The form of this method for a cache of numbers of `bits`.
    pub(super) fn form(self, bits: CacheBits) -> &'static dyn Form {
        let few = bits.are_few();
        match self {
            Self::Expanded | Self::ExpandedReconstructed => &Expanded,
            Self::Joint => &Joint,
            Self::TransMla => &Decoupled,
            Self::KeptHeads if few => &RebasedHeads,
            Self::KeptHeads => &KeptHeads,
            _ if few => &GroupedQuery,
            _ => &Absorbed,
        }
    }

    /// Checks whether this method is tried with numbers of `bits`. Integers are tried only with the best factors.
    fn takes(self, bits: CacheBits) -> Result<(), &'static str> {
        match (self, bits) {
            (Self::KeptHeads, CacheBits::Model) => {
                Err("heads as they are take fewer bytes only as integers")
            }
            (Self::KeptHeads | Self::Calibrated | Self::Reconstructed, _)
            | (Self::Joint, CacheBits::Eight)
            | (_, CacheBits::Model) => Ok(()),
            _ => Err(
                "integers are compared with the best factors alone: calibrated, reconstructed and kept-heads, and joint with 8 bits",
            ),
        }
    }

    /// The sizes to try: each a share of the cached elements, and the bits of an element. Integers are tried also at full
    /// rank, where factors lose nothing.
    pub(super) fn sizes(self, ratios: &[f64], bits: &[CacheBits]) -> Vec<(f64, CacheBits)> {
        let taken = || {
            bits.iter()
                .copied()
                .filter(|&bits| self.takes(bits).is_ok())
        };
        let whole = taken()
            .filter(|&bits| bits != CacheBits::Model)
            .map(|bits| (1.0, bits));
        let narrow = taken().flat_map(|bits| ratios.iter().map(move |&ratio| (ratio, bits)));
        match self {
            Self::KeptHeads => whole.collect(),
            Self::Calibrated => whole.chain(narrow).collect(),
            _ => narrow.collect(),
        }
    }

    pub(super) fn reconstructs(self) -> bool {
        matches!(self, Self::Reconstructed | Self::ExpandedReconstructed)
    }
}

/// Methods of a comparison that are not tried with some of the requested numbers of bits, in any model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmade {
    /// The methods.
    pub ways: Vec<Way>,
    /// The bits, each with each of the methods.
    pub bits: Vec<CacheBits>,
    /// The reason.
    pub why: &'static str,
}

impl Unmade {
    /// The combinations of `ways` and `bits` that are not tried, by their reasons.
    pub(super) fn of(ways: &[Way], bits: &[CacheBits]) -> Vec<Self> {
        let mut unmade: Vec<Self> = Vec::new();
        let all = ways
            .iter()
            .flat_map(|&way| bits.iter().map(move |&bits| (way, bits)));
        for (way, bits) in all {
            let Err(why) = way.takes(bits) else { continue };
            match unmade.iter_mut().find(|one| one.why == why) {
                Some(one) => {
                    let (known, numbers) = (&mut one.ways, &mut one.bits);
                    known.extend((!known.contains(&way)).then_some(way));
                    numbers.extend((!numbers.contains(&bits)).then_some(bits));
                }
                None => unmade.push(Self {
                    ways: vec![way],
                    bits: vec![bits],
                    why,
                }),
            }
        }
        unmade
    }
}

impl fmt::Display for Unmade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ways: Vec<&str> = self.ways.iter().map(|way| way.name()).collect();
        let bits: Vec<String> = self
            .bits
            .iter()
            .map(|&bits| width(bits).to_string())
            .collect();
        write!(
            f,
            "{} with {} bits: {}",
            ways.join(", "),
            bits.join(", "),
            self.why
        )
    }
}

/// The bits of a cached number as the command line takes them: 16 stands for the model's own type.
#[must_use]
pub fn width(bits: CacheBits) -> u32 {
    bits.number().unwrap_or(16)
}
