//! Mutants of the encoding: bits, lengths and ranges of bytes.

use crate::choices::Choices;
use crate::seeds::Seed;

/// Largest number of changes to one model.
const MOST_CHANGES: usize = 4;
/// Bytes that end, begin or fill protobuf numbers and keys.
const TELLING: [u8; 8] = [0x00, 0x01, 0x0a, 0x12, 0x7f, 0x80, 0xfe, 0xff];
/// 2^63, -1 and an overlong number, as varints.
const LARGE: [&[u8]; 3] = [
    &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0xff; 11],
];

/// The file of `seed` with some of its bytes changed.
pub fn mutant(seed: &Seed, choices: &mut Choices<'_>) -> Vec<u8> {
    let mut bytes = seed.bytes.to_vec();
    for _ in 0..=choices.below(MOST_CHANGES) {
        let at = place(seed, choices).min(bytes.len());
        let rest = bytes.len() - at;
        let length = (1 + choices.below(32)).min(rest);
        match choices.below(8) {
            0 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << choices.below(8);
                }
            }
            1 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = choices.pick(&TELLING);
                }
            }
            2 => drop(bytes.drain(at..at + length)),
            3 => {
                let copied = bytes[at..at + length].to_vec();
                bytes.splice(at..at, copied);
            }
            4 => {
                let from = place(seed, choices).min(bytes.len());
                let length = length.min(bytes.len() - from);
                let copied = bytes[from..from + length].to_vec();
                bytes.splice(at..at + length, copied);
            }
            5 => drop(bytes.splice(at..(at + 1).min(at + rest), choices.pick(&LARGE).to_vec())),
            6 if choices.once_in(8) => bytes.truncate(at),
            _ => {
                // One number more or less: lengths of messages that are off by one.
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = byte.wrapping_add(choices.pick(&[1, 255]));
                }
            }
        }
    }
    bytes
}

/// A place outside the weights.
fn place(seed: &Seed, choices: &mut Choices<'_>) -> usize {
    let total: usize = seed.structure.iter().map(ExactSizeIterator::len).sum();
    let mut at = choices.below(total);
    for range in &seed.structure {
        if at < range.len() {
            return range.start + at;
        }
        at -= range.len();
    }
    0
}
