//! The caches of a model before and after the rewrite.

use std::collections::BTreeMap;

use crate::files::load::LoadedModel;
use crate::serving::error::{ServingError, differing_widths};
use crate::serving::stack::Stack;
use crate::validate::ValidateError;
use crate::validate::cache::{CacheKind, CachePort};
use crate::validate::interface::Interface;
use crate::validate::port::{AxisSize, Port};
use crate::validate::ports::{LanguageModel, declared};

/// The properties of a model before and after the rewrite that serving stacks depend on.
#[derive(Debug, Clone, PartialEq)]
pub struct Latent {
    pub(crate) before: Interface,
    pub(crate) after: Interface,
    pub(crate) fused: bool,
    /// Inputs and outputs of the rewritten model.
    pub(crate) ports: (Vec<Port>, Vec<Port>),
    /// The model's file name, and the numbers of data files of the original and of the rewritten model.
    pub(crate) file: String,
    pub(crate) data_files: (usize, usize),
}

impl Latent {
    /// Reads the inputs and outputs of the original and of the rewritten model. `fused`: `GroupQueryAttention` manages
    /// the cache.
    ///
    /// # Errors
    /// [`ValidateError`] if one of them is not a language model.
    pub fn of(
        before: &LoadedModel,
        after: &LoadedModel,
        fused: bool,
    ) -> Result<Self, ValidateError> {
        let file = before.path.file_name().unwrap_or_default();
        Ok(Self {
            before: LanguageModel::of(&before.model.proto)?.interface,
            after: LanguageModel::of(&after.model.proto)?.interface,
            fused,
            ports: declared(&after.model.proto),
            file: file.to_string_lossy().into_owned(),
            data_files: (before.sources.len(), after.sources.len()),
        })
    }

    /// Whether the caches of both models have equal shapes, so that no configuration of shapes must change. Their types
    /// may differ: genai, Optimum and transformers.js read them from the session.
    pub(crate) fn keeps_shapes(&self) -> bool {
        let dims = |i: &Interface| i.caches.iter().map(|c| c.dims.clone()).collect::<Vec<_>>();
        dims(&self.before) == dims(&self.after)
    }

    /// The number of heads and the head size of all caches, for stacks that compute shapes from a configuration; an error if
    /// they differ.
    pub(crate) fn shape(&self, stack: Stack) -> Result<(usize, usize), ServingError> {
        let refused = |reason: &str| ServingError::Refused {
            stack: stack.name(),
            reason: reason.to_owned(),
        };
        // States of constant size, such as that of a convolution, have no rank.
        let growing = || self.after.caches.iter().filter(|c| c.length_axis.is_some());
        if growing().any(|cache| cache.length_axis != Some(2)) {
            return Err(refused(
                "the axes of the caches have another order than [batch, heads, length, size]",
            ));
        }
        let mut shapes = growing().map(shape_of);
        let first = shapes
            .next()
            .flatten()
            .ok_or_else(|| refused("the size of a cache is open"))?;
        match shapes.all(|shape| shape == Some(first)) {
            true => Ok(first),
            false => Err(differing_widths(stack)),
        }
    }

    /// The number of heads and the head size of the first cache, if the keys and the values of each layer have the same
    /// shape: for stacks that read the shape of each layer from the session. `None` if some caches are not rewritten
    /// and have the shape in the configuration.
    pub(crate) fn first_shape(&self, stack: Stack) -> Result<Option<(usize, usize)>, ServingError> {
        let refused = |reason: &str| ServingError::Refused {
            stack: stack.name(),
            reason: reason.to_owned(),
        };
        let mut layers: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        let of_text = |c: &&CachePort| c.length_axis.is_some() || c.kind == CacheKind::Ring;
        let (mut first, mut open) = (None, false);
        for cache in self.after.caches.iter().filter(of_text) {
            let in_order = cache.length_axis.is_none_or(|axis| axis == 2);
            let Some(shape) = shape_of(cache).filter(|_| in_order) else {
                open = true;
                continue;
            };
            let layer = cache.past.replace("value", "key");
            if *layers.entry(layer).or_insert(shape) != shape {
                return Err(refused(
                    "it takes one shape for the keys and the values of a layer, and they differ (use --layout uniform)",
                ));
            }
            first.get_or_insert(shape);
        }
        match (first, open) {
            (_, true) => Ok(None),
            (None, _) => Err(refused("the model has no cache that grows")),
            (first, _) => Ok(first),
        }
    }

    /// Whether some caches are ring buffers, which have a constant size.
    pub(crate) fn has_rings(&self) -> bool {
        let mut caches = self.after.caches.iter();
        caches.any(|cache| cache.kind == CacheKind::Ring)
    }
}

/// The number of heads and the head size of a cache [B, heads, P, size].
fn shape_of(cache: &CachePort) -> Option<(usize, usize)> {
    match cache.dims.as_slice() {
        [_, AxisSize::Fixed(heads), _, AxisSize::Fixed(width)] => Some((*heads, *width)),
        _ => None,
    }
}
