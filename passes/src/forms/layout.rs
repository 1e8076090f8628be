//! The factors of an attention as initializers.

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayD, Axis};

use crate::analysis::SiteView;
use crate::factor::{CacheBits, Made};
use crate::forms::FormError;
use crate::forms::join::Join;
use crate::forms::names::SiteNames;
use crate::forms::tensors::{TensorRange, tensor};
use crate::graph::text::type_name;
use crate::onnx::TensorProto;

/// The initializers of one attention.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// The name of the initializer, or other value, of each role, such as `w_dk`.
    names: BTreeMap<&'static str, String>,
    /// Element type and shape of each initializer, by name.
    declared: BTreeMap<String, (i32, Vec<usize>)>,
    /// Bits of a cached number.
    pub bits: CacheBits,
    /// The ONNX element type of a cache of integers; `None` for the model's own type.
    pub integers: Option<i32>,
    /// Number of heads that are cached as integers; 0 without integers.
    pub rounded_heads: usize,
    /// The initializers.
    pub tensors: Vec<TensorProto>,
    /// How the new rows of a step are appended to the cache.
    pub join: Join,
    /// The past inputs of all attentions that are rewritten, in the same way.
    pub pasts: Vec<String>,
}

impl Layout {
    /// The name of the value with the role `role`; empty if there is none.
    pub fn name(&self, role: &str) -> &str {
        self.names.get(role).map_or("", String::as_str)
    }

    /// The name of the value with the role `role`.
    pub fn find(&self, role: &str) -> Option<&str> {
        self.names.get(role).map(String::as_str)
    }

    /// Number of heads that the operator caches: 1 for a latent.
    pub fn heads(&self) -> usize {
        self.rounded_heads.max(1)
    }

    /// Gives the value `name` the role `role`.
    pub fn set(&mut self, role: &'static str, name: String) {
        self.names.insert(role, name);
    }

    /// Adds `values` as an initializer of element type `elem_type` with the role `role`.
    ///
    /// # Errors
    /// [`TensorRange`] if a value is out of the range of the type.
    pub fn add(
        &mut self,
        names: &SiteNames,
        role: &'static str,
        elem_type: i32,
        values: &ArrayD<f64>,
    ) -> Result<(), TensorRange> {
        let name = names.name(role);
        self.tensors.push(tensor(
            &name,
            elem_type,
            &values.as_standard_layout().view(),
        )?);
        let shape = (elem_type, values.shape().to_vec());
        self.declared.insert(name.clone(), shape);
        self.set(role, name);
        Ok(())
    }

    /// Adds `values` as an initializer of element type `elem_type` with the role `role` that all attentions with equal
    /// values share. `content` must identify the values for a given role and shape.
    ///
    /// # Errors
    /// [`TensorRange`] if a value is out of the range of the type.
    pub fn add_shared(
        &mut self,
        names: &SiteNames,
        (role, content): (&'static str, &str),
        elem_type: i32,
        values: &ArrayD<f64>,
    ) -> Result<(), TensorRange> {
        let sizes: Vec<String> = values.shape().iter().map(ToString::to_string).collect();
        let (kind, sizes) = (type_name(elem_type), sizes.join(","));
        let name = names.shared(&format!("mla/{role}/{kind}[{sizes}]{content}"));
        let view = values.as_standard_layout();
        self.tensors.push(tensor(&name, elem_type, &view.view())?);
        let shape = (elem_type, values.shape().to_vec());
        self.declared.insert(name.clone(), shape);
        self.set(role, name);
        Ok(())
    }

    /// Name, element type and shape of each initializer.
    pub fn declared(&self) -> impl Iterator<Item = (&str, i32, &[usize])> {
        let all = self.declared.iter();
        all.map(|(name, (elem_type, shape))| (name.as_str(), *elem_type, shape.as_slice()))
    }

    /// Adds the bias correction `b_v` [H, 1, dv] of the outputs, if there is one: of all heads that read the cache,
    /// the attention's own.
    ///
    /// # Errors
    /// [`TensorRange`] if a value is out of the range of the type.
    pub fn add_output_bias(
        &mut self,
        names: &SiteNames,
        view: &SiteView,
        bias: Option<&Array2<f64>>,
    ) -> Result<(), TensorRange> {
        if let Some(bias) = bias {
            let side = &view.site().value;
            let own = bias.select(Axis(0), &view.reading_heads().of(view.placed.reader));
            let by_head = (own * side.scale).insert_axis(Axis(1));
            self.add(names, "b_v", side.product_type, &by_head.into_dyn())?;
        }
        Ok(())
    }

    /// The shape of the initializer with the role `role`.
    pub fn shape(&self, role: &str) -> Option<&[usize]> {
        let (_, shape) = self.declared.get(self.find(role)?)?;
        Some(shape)
    }

    /// Makes w_uk and w_uv initializers of this attention alone, if all attentions share them.
    pub fn own_up_projections(&mut self, names: &SiteNames) {
        for role in UP {
            let Some(shared) = self.names.get(role).cloned() else {
                continue;
            };
            let own = names.name(role);
            for tensor in self.tensors.iter_mut().filter(|t| t.name() == shared) {
                tensor.name = Some(own.clone());
            }
            if let Some(declared) = self.declared.remove(&shared) {
                self.declared.insert(own.clone(), declared);
            }
            self.set(role, own);
        }
    }

    /// These initializers, which another reader of the cache stored, with those of `own` that each reader has by itself: the
    /// bias of its outputs, and w_uk and w_uv if they have a block for each of its query heads (`per_head`).
    #[must_use]
    pub fn for_reader(&self, own: &Self, per_head: bool) -> Self {
        let mut layout = self.clone();
        let roles = UP.into_iter().filter(|_| per_head).chain(["b_v"]);
        for role in roles {
            let Some(name) = own.names.get(role) else {
                continue;
            };
            let tensors = own.tensors.iter().filter(|t| t.name() == name);
            layout.tensors.extend(tensors.cloned());
            let declared = own.declared.get(name).cloned();
            layout.declared.extend(declared.map(|d| (name.clone(), d)));
            layout.set(role, name.clone());
        }
        layout
    }
}

/// The roles of the up-projections.
const UP: [&str; 2] = ["w_uk", "w_uv"];

/// What reads a latent that is cached as integers, and so applies its scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Products with w_uk and w_uv, which include the scales.
    Products,
    /// An operator that takes the scales as inputs.
    Operator,
}

/// The initializers of the absorbed forms:
///
/// ```text
/// w_dk [G*d, r]     keys to latent
/// w_uk [G, d, r]    queries to latent; holds every constant factor of the keys
/// w_dv [G*dv, r]    values to latent
/// w_uv [G, r, dv]   latent to outputs; holds every constant factor of the values
/// b_v  [H, 1, dv]   bias correction of the outputs, if the factors have one
/// s_k, s_v  [r]     scales of the latent channels, if they are cached as integers
/// m_k, m_v  [r]     centres that are subtracted from latents before rounding
/// ```
///
/// If every query head has factors of its own, w_uk is [H, d, r] and w_uv [H, r, dv].
///
/// At full rank the latent is the concatenation of the heads. Then there is no w_d, and w_u, which only selects a head
/// and scales it, is shared by all attentions of the same shape and scale.
///
/// # Errors
/// [`FormError`] if a factor is out of the range of the model's element type, or if the factors are TransMLA's.
pub fn latents(
    view: &SiteView,
    made: &Made,
    reads: Reads,
    names: &SiteNames,
) -> Result<Layout, FormError> {
    let site = view.site();
    let scaled = made.rounding().filter(|_| reads == Reads::Products);
    let factors = match (scaled, made.rounding()) {
        (Some(rounding), _) => made.latent()?.reading_integers(rounding),
        (None, Some(rounding)) => made.latent()?.reading_second_digits(rounding),
        (None, None) => made.latent()?.clone(),
    };
    let cached = site.elem_type;
    let mut layout = Layout::default();
    let up_key = (&factors.key.up * site.key.scale).into_dyn();
    let up_value = (&factors.value.up * site.value.scale).permuted_axes([0, 2, 1]);
    let sides = [
        (&factors.key, &site.key, ("w_dk", "w_uk"), up_key),
        (
            &factors.value,
            &site.value,
            ("w_dv", "w_uv"),
            up_value.into_dyn(),
        ),
    ];
    for (factors, side, (down, up), values) in sides {
        let whole = is_identity(&factors.down);
        if whole && scaled.is_none() {
            let content = (up, &*format!("*{}", side.scale));
            layout.add_shared(names, content, side.product_type, &values)?;
        } else {
            if !whole {
                layout.add(names, down, cached, &factors.down.clone().into_dyn())?;
            }
            layout.add(names, up, side.product_type, &values)?;
        }
    }
    layout.add_output_bias(names, view, factors.bias.as_ref())?;
    if let Some(rounding) = made.rounding() {
        layout.add_rounding(names, site, rounding)?;
    }
    Ok(layout)
}

/// Whether the latent is the concatenation of the heads: w_d is the identity, and w_u selects each head.
fn is_identity(down: &Array2<f64>) -> bool {
    let one = |same: bool| f64::from(u8::from(same));
    down.is_square() && down.indexed_iter().all(|((i, j), v)| *v == one(i == j))
}
