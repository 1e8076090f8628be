//! Runs one model step by step: the present caches of a run are the past caches of the next.

use crate::runtime::tensor::{Data, Tensor};
use crate::runtime::{RuntimeError, Session};
use crate::validate::cache::{CacheKind, CachePort};
use crate::validate::error::ValidateError;
use crate::validate::feed::{Moment, bounded};
use crate::validate::interface::Interface;

/// A model in a scenario, with its current caches.
pub struct Runner<'a> {
    session: &'a mut dyn Session,
    interface: Interface,
    pads: Vec<usize>,
    /// Past tokens, `P`.
    past: usize,
    /// The caches after the last run, in the order of [`Interface::caches`].
    caches: Vec<Tensor>,
    /// Whether tokens that are not of the text follow it in the caches.
    is_filled_up: bool,
}

impl<'a> Runner<'a> {
    /// A runner for `session`. Undeclared cache sizes are found by trying usual ones.
    ///
    /// # Errors
    /// [`ValidateError::Interface`] if the model runs with none of them.
    pub fn new(session: &'a mut dyn Session, interface: &Interface) -> Result<Self, ValidateError> {
        let (rows, tokens) = (interface.fixed_batch, interface.fixed_length());
        bounded("tokens", &[rows.unwrap_or(1), tokens.unwrap_or(1)])?;
        Ok(Self {
            interface: closed_by_trying(session, interface)?,
            session,
            pads: Vec::new(),
            past: 0,
            caches: Vec::new(),
            is_filled_up: false,
        })
    }

    /// Begins a scenario with empty caches; `pads` is the number of left-padding positions of each row.
    ///
    /// # Errors
    /// [`ValidateError::Interface`] if a cache has an axis of unknown size.
    pub fn start(&mut self, pads: &[usize]) -> Result<(), ValidateError> {
        let empty = |cache: &CachePort| {
            let open = || {
                ValidateError::Interface(format!(
                    "cache {} has an axis of unknown extent",
                    cache.past
                ))
            };
            let shape = cache.empty(pads.len()).ok_or_else(open)?;
            bounded(&cache.past, &shape)?;
            bounded(&cache.past, &cache.shape(pads.len(), 1).unwrap_or_default())?;
            Ok(Tensor::zeros(cache.element, shape)?)
        };
        self.caches = self
            .interface
            .caches
            .iter()
            .map(empty)
            .collect::<Result<_, ValidateError>>()?;
        self.pads = pads.to_vec();
        self.past = 0;
        self.is_filled_up = false;
        Ok(())
    }

    /// Runs `tokens`, `[batch, length]` row-major, and returns the logits `[batch, length, vocabulary]`.
    ///
    /// # Errors
    /// [`ValidateError::Runtime`], or [`ValidateError::Interface`] if an output is missing.
    pub fn step(&mut self, tokens: &[i64], length: usize) -> Result<Tensor, ValidateError> {
        let caches = std::mem::take(&mut self.caches);
        let moment = Moment {
            pads: &self.pads,
            past: self.past,
            length,
            tokens,
        };
        let mut feeds = moment.feeds(&self.interface, caches)?;
        let mut outputs = self.session.run(&feeds)?;
        let mut take = |name: &str| {
            taken(&mut outputs, name)
                .ok_or_else(|| ValidateError::Interface(format!("the model did not return {name}")))
        };
        self.caches = self
            .interface
            .caches
            .iter()
            .map(|cache| Ok(cache.kept(taken(&mut feeds, &cache.past), take(&cache.present)?)?))
            .collect::<Result<_, ValidateError>>()?;
        self.past += length;
        take(&self.interface.logits)
    }

    /// Begins a text in one row; a model with a constant batch size reads it in all rows.
    ///
    /// # Errors
    /// As [`Runner::start`].
    pub fn start_one(&mut self) -> Result<(), ValidateError> {
        self.start(&vec![0; self.interface.fixed_batch.unwrap_or(1)])
    }

    /// Runs the next `tokens` of a text, and returns their logits `[1, length, vocabulary]`. If the file fixes the number of
    /// tokens of a run, the last run is filled up with token 0, and nothing can be read after it.
    ///
    /// # Errors
    /// As [`Runner::step`], and [`ValidateError::Interface`] after a run that was filled up, and for a model without a cache
    /// that cannot read all tokens in one run.
    pub fn read(&mut self, tokens: &[i64]) -> Result<Tensor, ValidateError> {
        let size = self.interface.fixed_length().unwrap_or(tokens.len()).max(1);
        let refused = |why: &str| {
            Err(ValidateError::Interface(format!(
                "the file fixes a run to {size} tokens, {why}"
            )))
        };
        if self.is_filled_up {
            return refused("so that a text cannot be read in runs of other lengths");
        }
        if self.interface.caches.is_empty() && tokens.len() > size {
            return refused(&format!(
                "and without a cache it cannot read a longer text: give --length {size}"
            ));
        }
        let (mut width, mut values) = (0, Vec::new());
        for run in tokens.chunks(size) {
            self.is_filled_up = run.len() < size;
            let mut filled = run.to_vec();
            filled.resize(size, 0);
            let rows = self.step(&filled.repeat(self.pads.len()), size)?;
            if size == tokens.len() && self.pads.len() == 1 {
                return Ok(rows);
            }
            width = rows.shape.last().copied().unwrap_or(0);
            let first = rows.floats();
            values.extend_from_slice(first.get(..run.len() * width).unwrap_or_default());
        }
        Ok(Tensor::new(
            vec![1, tokens.len(), width],
            Data::F32(values),
        )?)
    }

    /// Tokens in the caches, padding included.
    #[must_use]
    pub fn past(&self) -> usize {
        self.past
    }

    /// Bytes per token and row of the caches that the last run returned, measured from the tensors.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn cache_bytes_per_token(&self) -> f64 {
        let described = self.interface.caches.iter().zip(&self.caches);
        let of_tokens = described.filter_map(|(cache, tensor)| {
            let rows = *tensor.shape.get(cache.length_axis?)?;
            Some(tensor.byte_size() as f64 / (self.pads.len() * rows).max(1) as f64)
        });
        of_tokens.sum()
    }

    /// The runtime of the model.
    #[must_use]
    pub fn describe(&self) -> String {
        self.session.describe()
    }
}

/// Removes the tensor `name` from `tensors`.
fn taken(tensors: &mut Vec<(String, Tensor)>, name: &str) -> Option<Tensor> {
    let at = tensors.iter().position(|(known, _)| known == name)?;
    Some(tensors.swap_remove(at).1)
}

/// `interface` with sizes for the cache axes without a declared size, such as the head size. One token is run with each
/// usual size; the first one with which presents have the shape of the pasts is used.
///
/// # Errors
/// [`ValidateError::Interface`] if the model runs with none of these sizes.
pub fn closed_by_trying(
    session: &mut dyn Session,
    interface: &Interface,
) -> Result<Interface, ValidateError> {
    if !interface.has_open_axes() {
        return Ok(interface.clone());
    }
    let likely = [
        64, 128, 96, 80, 256, 32, 16, 48, 72, 112, 160, 192, 512, 576, 8, 24, 40, 56, 88, 104, 120,
    ];
    let mut refusals = Vec::new();
    for extent in likely {
        let mut attempt = interface.clone();
        attempt.close_open_axes(extent);
        let mut runner = Runner {
            session,
            interface: attempt,
            pads: Vec::new(),
            past: 0,
            caches: Vec::new(),
            is_filled_up: false,
        };
        let length = interface.fixed_length().unwrap_or(1);
        runner.start_one()?;
        match runner.step(&vec![0; runner.pads.len() * length], length) {
            Ok(_) => {
                let kept = |(cache, tensor): (&CachePort, &Tensor)| {
                    let rows = match cache.kind {
                        CacheKind::Static => cache.rows(length),
                        _ => cache.window().unwrap_or(length),
                    };
                    cache.shape(runner.pads.len(), rows).as_ref() == Some(&tensor.shape)
                };
                if runner.interface.caches.iter().zip(&runner.caches).all(kept) {
                    return Ok(runner.interface);
                }
            }
            // The model ran, but not on the requested device.
            Err(error @ ValidateError::Runtime(RuntimeError::Provider { .. })) => {
                return Err(error);
            }
            Err(error) => refusals.push(format!("with {extent}, {error}")),
        }
    }
    Err(ValidateError::Interface(format!(
        "the caches have an axis without an extent, and no usual head size fits: {}",
        rarest(&refusals)
    )))
}

/// The refusal whose words, without numbers, are the rarest: that of the right head size has another cause than those of the
/// wrong ones.
fn rarest(refusals: &[String]) -> &str {
    let words = |refusal: &str| refusal.replace(|c: char| c.is_ascii_digit(), "");
    let alike = |refusal: &&String| {
        let same = |other: &&String| words(other) == words(refusal);
        refusals.iter().filter(same).count()
    };
    refusals.iter().min_by_key(alike).map_or("", |found| found)
}

#[cfg(test)]
mod tests {
    use super::rarest;

    #[test]
    fn the_refusal_of_another_kind_is_told() {
        let wrong = |size: usize| format!("with {size}, expected 16 and got {size}");
        let refusals = [
            wrong(64),
            wrong(8),
            "with 16, cos_cache".to_owned(),
            wrong(120),
        ];
        assert_eq!(rarest(&refusals), "with 16, cos_cache");
        assert_eq!(rarest(&[]), "");
    }
}
