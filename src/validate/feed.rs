//! Generates the input tensors of a run from the roles of the inputs.

use std::ops::Range;

use crate::runtime::RuntimeError;
use crate::runtime::tensor::{ElementType, Room, Tensor};
use crate::validate::cache::{CacheKind, CachePort};
use crate::validate::error::ValidateError;
use crate::validate::interface::{Input, Interface};
use crate::validate::port::{AxisSize, Role};
use crate::validate::scenario::Random;

/// Size of undeclared axes of inputs without a role, such as the rank of an adapter.
const OPEN_EXTENT: usize = 4;

/// Length of the generated source text of encoder-decoder models.
const SOURCE_LENGTH: usize = 5;

/// Largest number of elements of a generated input, and of all inputs of a run: 1 GiB of fp32. More indicates a wrong
/// declared shape.
const MOST_ELEMENTS: usize = 1 << 28;

fn signed(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The number of elements of `shape`; an error if it is above 2^28.
pub fn bounded(name: &str, shape: &[usize]) -> Result<usize, RuntimeError> {
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    count
        .filter(|&n| n <= MOST_ELEMENTS)
        .ok_or_else(|| RuntimeError::TooLarge {
            name: name.to_owned(),
            shape: shape.to_vec(),
        })
}

/// The parameters of one run, which determine all its inputs.
pub struct Moment<'a> {
    /// Number of left-padding positions of each row.
    pub pads: &'a [usize],
    /// Past tokens, `P`.
    pub past: usize,
    /// New tokens per row, `T`.
    pub length: usize,
    /// Token ids `[B, T]`, row-major.
    pub tokens: &'a [i64],
}

impl Moment<'_> {
    /// All inputs of the model by name. `caches` are its pasts, in the order of [`Interface::caches`]; those that the
    /// model writes in place are extended by T rows, and static ones to the number of rows of their buffer.
    ///
    /// # Errors
    /// [`ValidateError::Interface`] if a cache is missing.
    pub fn feeds(
        &self,
        interface: &Interface,
        caches: Vec<Tensor>,
    ) -> Result<Vec<(String, Tensor)>, ValidateError> {
        interface.check_fed()?;
        let mut caches: Vec<Option<Tensor>> = caches.into_iter().map(Some).collect();
        let mut feeds = Vec::with_capacity(interface.inputs.len());
        let mut generated = 0;
        for input in &interface.inputs {
            let tensor = match (input.role, &input.value) {
                (_, Some(value)) => {
                    let shape = self.declared(interface, input);
                    bounded(&input.name, &shape)?;
                    value.tensor(input.element, shape, self.pads.len())?
                }
                (Role::Past(index), None) => {
                    let cached = caches.get_mut(index).and_then(Option::take);
                    let cached = cached.ok_or_else(|| {
                        ValidateError::Interface(format!("cache {} was not started", input.name))
                    })?;
                    match interface.caches.get(index) {
                        Some(port) => self.with_room(port, cached)?,
                        None => cached,
                    }
                }
                (Role::AttentionMask, None) => self.mask(input, &self.columns(interface, input))?,
                (Role::Given, None) => {
                    let tensor = self.given(interface, input)?;
                    generated += tensor.shape.iter().product::<usize>();
                    bounded("all inputs without a value, together", &[generated])?;
                    tensor
                }
                _ => self.plain(input, interface.window().unwrap_or(self.past))?,
            };
            feeds.push((input.name.clone(), tensor));
        }
        Ok(feeds)
    }

    /// The cache `cached` of `port` with the rows into which the model writes the new tokens.
    fn with_room(&self, port: &CachePort, cached: Tensor) -> Result<Tensor, ValidateError> {
        let Some(axis) = port.length_axis else {
            return Ok(cached);
        };
        let tokens = self.past + self.length;
        match port.kind {
            CacheKind::Growing | CacheKind::Window | CacheKind::Ring => Ok(cached),
            CacheKind::InPlace => Ok(cached.with_room(axis, self.length, Room::Unread)?),
            CacheKind::Static if port.rows(tokens) < tokens => {
                Err(ValidateError::Interface(format!(
                    "cache {} has {} rows, and {tokens} tokens are fed: feed fewer, or export with a larger buffer",
                    port.past,
                    port.rows(tokens)
                )))
            }
            CacheKind::Static => {
                let rows = port.rows(tokens);
                bounded(
                    &port.past,
                    &port.shape(self.pads.len(), rows).unwrap_or_default(),
                )?;
                let held = cached.shape.get(axis).copied().unwrap_or(0);
                Ok(cached.with_room(axis, rows.saturating_sub(held), Room::Stale)?)
            }
        }
    }

    /// An input that does not depend on the caches' content. `first` is the cache slot of the first new token.
    fn plain(&self, input: &Input, first: usize) -> Result<Tensor, RuntimeError> {
        let (batch, total) = (self.pads.len(), self.past + self.length);
        match input.role {
            Role::TokenIds => {
                Tensor::from_integers(input.element, vec![batch, self.length], self.tokens)
            }
            Role::InputsEmbeds => self.embeddings(input),
            Role::WriteIndices => {
                let rows = vec![signed(self.past); batch];
                Tensor::from_integers(input.element, vec![batch], &rows)
            }
            Role::WrittenRows => {
                let rows = vec![signed(total); batch];
                Tensor::from_integers(input.element, vec![batch], &rows)
            }
            Role::PositionIds if input.dims.len() >= 2 => {
                let row = |pads: &usize| {
                    (self.past..total)
                        .map(|at| signed(at.saturating_sub(*pads)))
                        .collect::<Vec<_>>()
                };
                let positions: Vec<i64> = self.pads.iter().flat_map(row).collect();
                let shape = vec![batch, self.length];
                // For text, the positions in time, height and width are equal.
                let (shape, positions) = match input.dims.as_slice() {
                    [AxisSize::Fixed(kinds), _, _] => {
                        ([vec![*kinds], shape].concat(), positions.repeat(*kinds))
                    }
                    [_, _, _] => ([vec![3], shape].concat(), positions.repeat(3)),
                    _ => (shape, positions),
                };
                bounded(&input.name, &shape)?;
                Tensor::from_integers(input.element, shape, &positions)
            }
            // A list without a batch axis is the indices of cache slots, by which the graph makes the causal mask.
            Role::PositionIds | Role::CachePosition => {
                let slots = first..first + self.length;
                let positions: Vec<i64> = slots.map(signed).collect();
                Tensor::from_integers(input.element, vec![self.length], &positions)
            }
            Role::UseCacheBranch => {
                Tensor::from_integers(input.element, vec![1; input.dims.len()], &[signed(first)])
            }
            // The number of all new tokens, which means the same as 0 ("all") where models define that.
            Role::LogitsToKeep => Tensor::from_integers(
                input.element,
                vec![1; input.dims.len()],
                &[signed(self.length)],
            ),
            Role::Context => self.context(input),
            Role::PastLength => self.count(input, self.past),
            Role::TotalLength => self.count(input, total),
            Role::LastSlot => self.count(input, total.saturating_sub(1)),
            Role::BeamIds => {
                let rows: Vec<i64> = (0..batch).map(signed).collect();
                Tensor::from_integers(input.element, vec![batch], &rows)
            }
            Role::Given | Role::Past(_) | Role::AttentionMask => {
                Tensor::zeros(input.element, Vec::new())
            }
        }
    }

    /// The same `number` for each row, or once, in the declared shape of `input`.
    fn count(&self, input: &Input, number: usize) -> Result<Tensor, RuntimeError> {
        let extent = |(axis, dim): (usize, &AxisSize)| match dim {
            AxisSize::Fixed(extent) => *extent,
            _ if axis == 0 => self.pads.len(),
            _ => 1,
        };
        let shape: Vec<usize> = input.dims.iter().enumerate().map(extent).collect();
        let count = bounded(&input.name, &shape)?;
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        Tensor::from_integers(input.element, shape, &vec![number; count])
    }

    /// The tokens of the columns of the mask `input`, by their numbers in the text. A window ends with the last token; tokens
    /// before the first one have negative numbers. A static cache has columns for tokens that are still to come.
    fn columns(&self, interface: &Interface, input: &Input) -> Range<i64> {
        let tokens = self.past + self.length;
        let declared = match input.dims.last() {
            Some(AxisSize::Fixed(width)) => Some(*width),
            _ => None,
        };
        if let Some(rows) = interface.window() {
            let width = declared.unwrap_or(rows.saturating_add(self.length));
            return signed(tokens) - signed(width)..signed(tokens);
        }
        let of_rows = input.dims.last().and_then(|size| interface.static_of(size));
        let fixed = declared.filter(|_| interface.capacity().is_some());
        0..signed(of_rows.map_or(fixed.unwrap_or(tokens), |cache| cache.rows(tokens)))
    }

    /// The attention mask. A mask of rank 2 marks the slots that hold tokens. A mask of rank 4 has an element for every
    /// query and key: booleans mark visible keys, floats are added to the scores. `columns` are the tokens of its columns.
    fn mask(&self, input: &Input, columns: &Range<i64>) -> Result<Tensor, RuntimeError> {
        let width = usize::try_from(columns.end - columns.start).unwrap_or(0);
        let (batch, total) = (self.pads.len(), self.past + self.length);
        bounded(&input.name, &[batch, width])?;
        if input.dims.len() == 2 {
            let row = |pads: &usize| {
                let seen = signed(*pads)..signed(total);
                let column = |at| i64::from(seen.contains(&at));
                columns.clone().map(column).collect::<Vec<_>>()
            };
            let mask: Vec<i64> = self.pads.iter().flat_map(row).collect();
            return Tensor::from_integers(input.element, vec![batch, width], &mask);
        }
        let shape = vec![batch, 1, self.length, width];
        let mut seen = Vec::with_capacity(bounded(&input.name, &shape)?);
        for pads in self.pads {
            for query in self.past..total {
                let visible = signed(*pads)..=signed(query);
                seen.extend(columns.clone().map(|key| i64::from(visible.contains(&key))));
            }
        }
        if input.element.is_float() {
            let lowest = if input.element == ElementType::F16 {
                -65504.0
            } else {
                f32::MIN
            };
            let added = seen
                .iter()
                .map(|&seen| if seen == 0 { lowest } else { 0.0 })
                .collect();
            return Tensor::from_floats(input.element, shape, added);
        }
        Tensor::from_integers(input.element, shape, &seen)
    }

    /// Generated encoder states of a short source text, the same for each row in every run, and not masked.
    fn context(&self, input: &Input) -> Result<Tensor, RuntimeError> {
        let extent = |(axis, dim): (usize, &AxisSize)| match dim {
            AxisSize::Fixed(extent) => *extent,
            _ if axis == 0 => self.pads.len(),
            _ => SOURCE_LENGTH,
        };
        let shape: Vec<usize> = input.dims.iter().enumerate().map(extent).collect();
        let count = bounded(&input.name, &shape)?;
        if input.element.is_float() && shape.len() > 2 {
            let mut random = Random::new(0);
            let values = (0..count).map(|_| random.signed_unit()).collect();
            return Tensor::from_floats(input.element, shape, values);
        }
        Tensor::from_integers(input.element, shape, &vec![1; count])
    }

    /// The declared shape of `input`. Symbols that the token ids or the mask also have get their sizes; other
    /// undeclared sizes are 1.
    fn declared(&self, interface: &Interface, input: &Input) -> Vec<usize> {
        let axis = |role: Role, at: usize| {
            let known = interface.inputs.iter().find(|i| i.role == role);
            known.and_then(|i| i.dims.get(at))
        };
        let (batch, total) = (self.pads.len(), self.past + self.length);
        let extent = |dim: &AxisSize| match dim {
            AxisSize::Fixed(extent) => *extent,
            AxisSize::Unknown => 1,
            symbol if Some(symbol) == axis(Role::TokenIds, 0) => batch,
            symbol if Some(symbol) == axis(Role::TokenIds, 1) => self.length,
            symbol if Some(symbol) == axis(Role::AttentionMask, 1) => total,
            AxisSize::Symbol(_) => 1,
        };
        input.dims.iter().map(extent).collect()
    }

    /// Random numbers in the declared shape of `input`. Undeclared sizes are equal, so that for example the two factors
    /// of an adapter fit each other.
    fn given(&self, interface: &Interface, input: &Input) -> Result<Tensor, RuntimeError> {
        let mut inputs = interface.inputs.iter();
        let tokens = inputs.find(|i| i.role == Role::TokenIds);
        let of_tokens = tokens.is_some_and(|tokens| tokens.dims == input.dims);
        let extent = |dim: &AxisSize| match dim {
            AxisSize::Fixed(extent) => *extent,
            AxisSize::Symbol(name) if name.to_lowercase().contains("batch") => self.pads.len(),
            AxisSize::Symbol(_) | AxisSize::Unknown => OPEN_EXTENT,
        };
        let shape: Vec<usize> = match of_tokens {
            true => vec![self.pads.len(), self.length],
            false => input.dims.iter().map(extent).collect(),
        };
        let count = bounded(&input.name, &shape)?;
        if !input.element.is_float() {
            return Tensor::from_integers(input.element, shape, &vec![0; count]);
        }
        // Small values, so that sums over the hidden size stay in the range of the activations.
        let mut random = Random::new(0);
        let values = (0..count).map(|_| random.signed_unit() / 8.0).collect();
        Tensor::from_floats(input.element, shape, values)
    }

    /// Generated embeddings that depend only on the token id, so that both models get the same.
    fn embeddings(&self, input: &Input) -> Result<Tensor, RuntimeError> {
        let width = if let Some(AxisSize::Fixed(width)) = input.dims.last() {
            *width
        } else {
            0
        };
        bounded(&input.name, &[self.tokens.len(), width])?;
        let row = |token: &i64| {
            let mut random = Random::new(token.unsigned_abs());
            (0..width).map(|_| random.signed_unit()).collect::<Vec<_>>()
        };
        let values = self.tokens.iter().flat_map(row).collect();
        Tensor::from_floats(
            input.element,
            vec![self.pads.len(), self.length, width],
            values,
        )
    }
}
