//! The inputs of a single run on a prompt with an empty cache.

use std::collections::HashMap;

use crate::runtime::tensor::Tensor;
use crate::validate::cache::CachePort;
use crate::validate::error::ValidateError;
use crate::validate::feed::{Moment, bounded};
use crate::validate::interface::Interface;
use crate::validate::port::AxisSize;

/// `interface` with the undeclared cache sizes set from `widths`, which has the number of heads and the head size by
/// past input. Equal symbols get equal sizes, also in caches that `widths` does not contain.
#[must_use]
pub fn closed(mut interface: Interface, widths: &HashMap<String, [usize; 2]>) -> Interface {
    let mut symbols: HashMap<String, usize> = HashMap::new();
    for cache in &mut interface.caches {
        let open = cache.open_axes();
        let Some(known) = widths.get(&cache.past) else {
            continue;
        };
        // The axes other than batch and length are the number of heads and the head size, in this order.
        let others = (0..cache.dims.len())
            .filter(|axis| *axis != cache.batch_axis && Some(*axis) != cache.length_axis);
        let others: Vec<usize> = others.collect();
        // A cache of three axes has the heads on one.
        let sizes = match others.len() {
            1 => vec![known.iter().product()],
            _ => known.to_vec(),
        };
        let places: Vec<(usize, usize)> = others.into_iter().zip(sizes).collect();
        for (axis, extent) in places {
            if let Some(dim) = cache.dims.get_mut(axis).filter(|_| open.contains(&axis)) {
                if let AxisSize::Symbol(symbol) = dim {
                    symbols.insert(std::mem::take(symbol), extent);
                }
                *dim = AxisSize::Fixed(extent);
            }
        }
    }
    for cache in &mut interface.caches {
        for axis in cache.open_axes() {
            if let Some(dim) = cache.dims.get_mut(axis)
                && let AxisSize::Symbol(symbol) = dim
                && let Some(extent) = symbols.get(symbol)
            {
                *dim = AxisSize::Fixed(*extent);
            }
        }
    }
    interface
}

/// All inputs of a run on `tokens` as a single row.
///
/// # Errors
/// [`ValidateError::Interface`] if a cache has an axis of unknown size, and [`ValidateError::Fixed`] if the model cannot read
/// these tokens in one run with an empty cache.
pub fn feeds(
    interface: &Interface,
    tokens: &[i64],
) -> Result<Vec<(String, Tensor)>, ValidateError> {
    interface.check_prompt(tokens.len())?;
    let empty = |cache: &CachePort| {
        let shape = cache.empty(1).ok_or_else(|| {
            ValidateError::Interface(format!(
                "cache {} has an axis of unknown extent",
                cache.past
            ))
        })?;
        bounded(&cache.past, &shape)?;
        Ok(Tensor::zeros(cache.element, shape)?)
    };
    let caches = interface
        .caches
        .iter()
        .map(empty)
        .collect::<Result<_, ValidateError>>()?;
    let moment = Moment {
        pads: &[0],
        past: 0,
        length: tokens.len(),
        tokens,
    };
    moment.feeds(interface, caches)
}
