//! Decisions read from the bytes of a fuzzing input.

/// A source of decisions; when the bytes are used up, a generator that starts from them goes on.
#[derive(Debug, Clone)]
pub struct Choices<'a> {
    left: &'a [u8],
    state: u64,
}

/// Bytes of an input that is made from a seed number.
const INPUT_LENGTH: usize = 48;

impl<'a> Choices<'a> {
    /// Decisions that depend on `input` alone.
    pub fn new(input: &'a [u8]) -> Self {
        let state = input.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self { left: input, state }
    }

    /// A number below `bound`; 0 where `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        let width = if bound <= 256 { 1 } else { 4 };
        let number = match self.left.split_at_checked(width) {
            Some((head, rest)) => {
                self.left = rest;
                head.iter()
                    .fold(0, |number: u64, byte| number << 8 | u64::from(*byte))
            }
            None => split_mix(&mut self.state),
        };
        (number % bound.max(1) as u64) as usize
    }

    /// One of `from`.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}

/// The input that stands for a seed number.
pub fn input(seed: u64) -> Vec<u8> {
    let mut state = seed;
    (0..INPUT_LENGTH)
        .map(|_| split_mix(&mut state) as u8)
        .collect()
}

/// SplitMix64 (Steele, Lea and Flood 2014).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
