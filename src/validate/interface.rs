//! The meaning of a language model's inputs and outputs, inferred from their types, ranks and names.
//!
//! Conventions differ between exporters: caches are listed key by key or layer by layer, as `past_key_values.3.key`,
//! `past_3_key` or `cache_k_3`. A cache is an input with a corresponding output of a matching name that is longer by
//! the new tokens.

use gqa2mla_passes::analysis::cache_layout::Laid;

use crate::runtime::given::{GivenInput, GivenValue};
use crate::runtime::tensor::ElementType;
use crate::validate::cache::{CacheKind, CachePort};
use crate::validate::error::ValidateError;
use crate::validate::pairing::{is_fixed, is_float, is_given, length_axis, pair};
use crate::validate::port::{AxisSize, Port, Role};
use crate::validate::roles::{batch_axis, element, plain_role, token_port, unknown};

/// An input and its role.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// The value's name.
    pub name: String,
    /// Element type.
    pub element: ElementType,
    /// Declared sizes.
    pub dims: Vec<AxisSize>,
    /// Its role.
    pub role: Role,
    /// The value from the user, in place of a generated one.
    pub value: Option<GivenValue>,
}

impl Input {
    /// The input `port` with the role `role` and a generated value.
    ///
    /// # Errors
    /// [`ValidateError::Input`] if its element type is not supported.
    pub fn of(port: Port, role: Role) -> Result<Self, ValidateError> {
        Ok(Self {
            element: element(&port)?,
            name: port.name,
            dims: port.dims,
            role,
            value: None,
        })
    }
}

/// An input for which no value can be generated, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfed {
    /// The input.
    pub port: Port,
    /// Why its role is unknown.
    pub reason: String,
}

/// A language model's interface.
#[derive(Debug, Clone, PartialEq)]
pub struct Interface {
    /// Every input whose value is generated or given, in the model's order.
    pub inputs: Vec<Input>,
    /// The inputs for which no value can be generated. The model can be rewritten, but not run.
    pub unfed: Vec<Unfed>,
    /// The inputs with a default value, which is used where none is given.
    pub defaults: Vec<Port>,
    /// The caches, in the order of their inputs; none in models that only read whole prompts.
    pub caches: Vec<CachePort>,
    /// Name of the output with the next-token logits, `[B, T, V]`.
    pub logits: String,
    /// Element type of the logits.
    pub logits_element: ElementType,
    /// The batch size, if it is declared as a constant.
    pub fixed_batch: Option<usize>,
}

impl Interface {
    /// Infers the interface from the declared inputs and outputs, and the caches whose axes are `laid` in another order, which
    /// the graph tells. The caller must leave out inputs that have an initializer.
    ///
    /// # Errors
    /// [`ValidateError::Interface`] if no input holds tokens, or no output holds the logits.
    pub fn of(inputs: &[Port], outputs: &[Port], laid: &[Laid]) -> Result<Self, ValidateError> {
        let mut unfed: Vec<Unfed> = Vec::new();
        let mut roles = Vec::with_capacity(inputs.len());
        for port in inputs {
            roles.push(plain_role(port).unwrap_or_else(|reason| {
                let port = port.clone();
                unfed.push(Unfed { port, reason });
                Some(Role::Given)
            }));
        }
        let tokens = token_port(inputs, &mut roles)?;
        let batch = tokens.dims.first().cloned().unwrap_or(AxisSize::Unknown);
        let pasts: Vec<&Port> = inputs
            .iter()
            .zip(&roles)
            .filter(|(_, r)| r.is_none())
            .map(|(port, _)| port)
            .collect();
        let (mut given, pasts): (Vec<&Port>, Vec<&Port>) =
            pasts.into_iter().partition(|port| is_given(port, tokens));
        let mut paired = pair(&pasts, outputs)?;
        // Floats of one size that no output continues, such as the pixels of an image.
        let is_alone = |(port, _): &mut (&Port, &str)| is_float(port) && is_fixed(port);
        given.extend(paired.lonely.extract_if(.., is_alone).map(|(port, _)| port));
        let mut without_role = |port: &Port, reason: &str| {
            unfed.push(Unfed {
                port: port.clone(),
                reason: reason.to_owned(),
            });
        };
        for (port, reason) in &paired.lonely {
            without_role(port, reason);
        }
        let mut caches = Vec::with_capacity(paired.pairs.len());
        // The pasts with a constant number of rows whose present declares none.
        let mut doubtful = Vec::new();
        for (past, present) in paired.pairs {
            let laid = laid.iter().find(|laid| laid.past == past.name);
            let (batch_axis, length_axis) = match laid.map(|laid| laid.axes) {
                Some([batch, _, length, _]) => (batch, Ok(Some(length))),
                None => {
                    let batch_axis = batch_axis(past, &batch);
                    (batch_axis, length_axis(past, present, batch_axis))
                }
            };
            match length_axis {
                Ok(length_axis) => {
                    let rows = |port: &Port| port.dims.get(length_axis?).cloned();
                    let is_fixed = |port| matches!(rows(port), Some(AxisSize::Fixed(_)));
                    if is_fixed(past) && !is_fixed(present) {
                        doubtful.push(past.name.as_str());
                    }
                    caches.push(CachePort {
                        past: past.name.clone(),
                        present: present.name.clone(),
                        element: element(past)?,
                        dims: past.dims.clone(),
                        batch_axis,
                        length_axis,
                        kind: match is_fixed(past) {
                            true => CacheKind::Window,
                            false => CacheKind::Growing,
                        },
                        gives_new_rows: false,
                    });
                }
                Err(reason) => without_role(past, reason),
            }
        }
        // Beside caches that grow, one of constant size whose present has an undeclared size is the state of a layer of
        // another kind.
        let grows = |c: &CachePort| c.kind == CacheKind::Growing && c.length_axis.is_some();
        if caches.iter().any(grows) {
            let doubtful = |c: &&mut CachePort| doubtful.contains(&c.past.as_str());
            for cache in caches.iter_mut().filter(doubtful) {
                (cache.kind, cache.length_axis) = (CacheKind::Growing, None);
            }
        }
        let logits = paired.logits;
        let mut classified = Vec::with_capacity(inputs.len());
        for (port, role) in inputs.iter().zip(roles) {
            if unfed.iter().any(|u| u.port.name == port.name) {
                continue;
            }
            let past = || {
                caches
                    .iter()
                    .position(|cache| cache.past == port.name)
                    .map(Role::Past)
            };
            let without_role = || given.iter().any(|g| g.name == port.name);
            let role = role
                .or_else(past)
                .or_else(|| without_role().then_some(Role::Given))
                .ok_or_else(|| unknown(port, "it is no cache with a partner among the outputs"))?;
            classified.push(Input::of(port.clone(), role)?);
        }
        let of_rows = |input: &&Input| {
            let roles = [Role::TokenIds, Role::AttentionMask, Role::PositionIds];
            roles.contains(&input.role) && input.dims.len() == 2
                || input.role == Role::InputsEmbeds && input.dims.len() == 3
        };
        let mut batches = classified.iter().filter(of_rows).map(|i| i.dims.first());
        let fixed_batch = batches.find_map(|batch| match batch {
            Some(AxisSize::Fixed(batch)) => Some((*batch).max(1)),
            _ => None,
        });
        Ok(Self {
            inputs: classified,
            unfed,
            defaults: Vec::new(),
            caches,
            logits: logits.name.clone(),
            logits_element: element(logits)?,
            fixed_batch,
        })
    }

    /// The number of new tokens per row, if it is declared as a constant.
    #[must_use]
    pub fn fixed_length(&self) -> Option<usize> {
        let roles = [Role::TokenIds, Role::InputsEmbeds];
        let tokens = self.inputs.iter().find(|i| roles.contains(&i.role))?;
        match tokens.dims.get(1)? {
            AxisSize::Fixed(length) => Some((*length).max(1)),
            _ => None,
        }
    }

    /// The same interface with the values `given` for the inputs that they name.
    ///
    /// # Errors
    /// [`ValidateError::Input`] names an input that the model does not have, or whose type is not supported.
    pub fn fed(mut self, given: &[GivenInput]) -> Result<Self, ValidateError> {
        for one in given {
            let unfed = self.unfed.iter().position(|u| u.port.name == one.name);
            let default = self.defaults.iter().position(|port| port.name == one.name);
            let port = match (unfed, default) {
                (Some(at), _) => Some(self.unfed.remove(at).port),
                (None, Some(at)) => Some(self.defaults.remove(at)),
                (None, None) => None,
            };
            if let Some(port) = port {
                self.inputs.push(Input::of(port, Role::Given)?);
            }
            let known = self.inputs.iter_mut().find(|i| i.name == one.name);
            let known = known.ok_or_else(|| ValidateError::Input {
                name: one.name.clone(),
                reason: "the model has no input of this name".to_owned(),
            })?;
            known.value = Some(one.value.clone());
        }
        Ok(self)
    }

    /// The number of past rows that a run reads, if all caches of tokens are windows of a constant number of rows; the largest
    /// of them.
    #[must_use]
    pub fn window(&self) -> Option<usize> {
        let mut of_tokens = self.caches.iter().filter(|c| c.length_axis.is_some());
        let rows = of_tokens.try_fold(None, |most: Option<usize>, cache| {
            Some(most.max(Some(cache.window()?)))
        });
        rows.flatten()
    }

    /// The number of tokens that all static caches hold; `None` if no declared number of rows limits it.
    #[must_use]
    pub fn capacity(&self) -> Option<usize> {
        let buffers = self.caches.iter().filter(|c| c.kind == CacheKind::Static);
        let declared = |cache: &CachePort| match cache.dims.get(cache.length_axis?) {
            Some(AxisSize::Fixed(rows)) => Some(*rows),
            _ => None,
        };
        buffers.filter_map(declared).min()
    }

    /// The static cache whose number of rows is declared as `size`.
    #[must_use]
    pub fn static_of(&self, size: &AxisSize) -> Option<&CachePort> {
        let mut caches = self.caches.iter();
        caches.find(|cache| {
            let rows = cache.length_axis.and_then(|axis| cache.dims.get(axis));
            cache.kind == CacheKind::Static && *size != AxisSize::Unknown && rows == Some(size)
        })
    }

    /// Checks that every input has a value or that one can be generated.
    ///
    /// # Errors
    /// [`ValidateError::Unfed`] names the first input without one.
    pub fn check_fed(&self) -> Result<(), ValidateError> {
        let window = self.caches.iter().find(|cache| cache.window() > Some(0));
        if let Some(cache) = window.filter(|_| !self.has(Role::AttentionMask)) {
            return Err(ValidateError::Unfed {
                name: cache.past.clone(),
                reason: "it has the same number of rows in every run, and there is no mask that hides those before the first token".to_owned(),
            });
        }
        match self.unfed.first() {
            None => Ok(()),
            Some(unfed) => Err(ValidateError::Unfed {
                name: unfed.port.name.clone(),
                reason: unfed.reason.clone(),
            }),
        }
    }

    /// Checks that the past can be empty.
    ///
    /// # Errors
    /// [`ValidateError::Fixed`].
    pub fn check_empty_past(&self) -> Result<(), ValidateError> {
        match self.window() {
            Some(rows) if rows > 0 => Err(ValidateError::Fixed {
                what: format!("a past of {rows} rows"),
            }),
            _ => Ok(()),
        }
    }

    /// Checks that the model can read `length` tokens of one row in one run with an empty cache.
    ///
    /// # Errors
    /// [`ValidateError::Fixed`] names the size that is constant in the file.
    pub fn check_prompt(&self, length: usize) -> Result<(), ValidateError> {
        self.check_empty_past()?;
        let what = match (self.fixed_length(), self.fixed_batch) {
            (Some(fixed), _) if fixed != length => format!("runs of {fixed} tokens"),
            (_, Some(rows)) if rows != 1 => format!("batches of {rows}"),
            _ => return Ok(()),
        };
        Err(ValidateError::Fixed { what })
    }

    /// Whether an input has this role.
    #[must_use]
    pub fn has(&self, role: Role) -> bool {
        self.inputs.iter().any(|input| input.role == role)
    }

    /// Whether some cache has an axis without a declared size.
    #[must_use]
    pub fn has_open_axes(&self) -> bool {
        self.caches
            .iter()
            .any(|cache| !cache.open_axes().is_empty())
    }

    /// Sets every undeclared size of the caches, which is the head size, to `extent`.
    pub fn close_open_axes(&mut self, extent: usize) {
        for cache in &mut self.caches {
            for axis in cache.open_axes() {
                if let Some(dim) = cache.dims.get_mut(axis) {
                    *dim = AxisSize::Fixed(extent);
                }
            }
        }
    }
}
