//! Folding of the down-projections of the expanded form into the projections of the layer input, if these are products
//! with stored weights.

use crate::analysis::SiteView;
use crate::factor::SideFactors;
use crate::forms::layout::Layout;
use crate::forms::names::SiteNames;
use crate::forms::tensors::TensorRange;
use crate::recognize::rotation::Rotated;
use crate::recognize::site::Side;
use crate::weights::rows::{Projected, projected};

/// The roles of the down-projection of keys or values in a [`Layout`].
struct ProjectionRoles {
    /// W_a = W w_d [E, r], applied to the layer input.
    folded: &'static str,
    /// w_d [G*d, r], applied to the rows.
    down: &'static str,
    /// b_a [r].
    bias: &'static str,
    /// The layer input x [B, T, E].
    input: &'static str,
}

const KEY: ProjectionRoles = ProjectionRoles {
    folded: "w_ak",
    down: "w_dk",
    bias: "b_ak",
    input: "x_k",
};
const VALUE: ProjectionRoles = ProjectionRoles {
    folded: "w_av",
    down: "w_dv",
    bias: "b_av",
    input: "x_v",
};

/// The projections into which the down-projections of one attention can be folded.
#[derive(Debug, Clone, Default)]
pub struct Projections {
    key: Option<Projected>,
    value: Option<Projected>,
}

impl Projections {
    /// The projections of the unrotated keys and of the values. Nothing is folded in subgraphs, because branches share
    /// factors but have different inputs.
    pub fn of(view: &SiteView) -> Self {
        if !view.is_in_main_graph() {
            return Self::default();
        }
        let site = view.site();
        let rows = match view.rotation() {
            Rotated::By(rotation) if rotation.part.is_some() => None,
            Rotated::By(rotation) => Some(&rotation.input),
            _ => Some(&site.key.new),
        };
        let of = |rows: &str, side: &Side| {
            let width = site.kv_heads * side.size;
            projected(view.model, view.graph, view.facts, rows, width)
        };
        Self {
            key: rows.and_then(|rows| of(rows, &site.key)),
            value: of(&site.value.new, &site.value),
        }
    }

    /// Adds the down-projection of the keys to `layout`: c = x W_a + b_a if their projection is folded, else c = k w_d.
    ///
    /// # Errors
    /// [`TensorRange`] if a factor is out of the range of the model's element type.
    pub fn add_key(
        &self,
        layout: &mut Layout,
        names: &SiteNames,
        elem_type: i32,
        factors: &SideFactors,
    ) -> Result<(), TensorRange> {
        add(self.key.as_ref(), KEY, layout, (names, elem_type), factors)
    }

    /// [`Self::add_key`] for the values.
    ///
    /// # Errors
    /// [`TensorRange`] if a factor is out of the range of the model's element type.
    pub fn add_value(
        &self,
        layout: &mut Layout,
        names: &SiteNames,
        elem_type: i32,
        factors: &SideFactors,
    ) -> Result<(), TensorRange> {
        let projection = self.value.as_ref();
        add(projection, VALUE, layout, (names, elem_type), factors)
    }
}

fn add(
    projection: Option<&Projected>,
    roles: ProjectionRoles,
    layout: &mut Layout,
    (names, elem_type): (&SiteNames, i32),
    factors: &SideFactors,
) -> Result<(), TensorRange> {
    let Some(projection) = projection else {
        let down = factors.down.clone().into_dyn();
        return layout.add(names, roles.down, elem_type, &down);
    };
    let own = projection.elem_type;
    let weight = projection.weight.dot(&factors.down).into_dyn();
    layout.add(names, roles.folded, own, &weight)?;
    layout.set(roles.down, layout.name(roles.folded).to_owned());
    layout.set(roles.input, projection.input.clone());
    if let Some(bias) = &projection.bias {
        layout.add(names, roles.bias, own, &bias.dot(&factors.down).into_dyn())?;
    }
    Ok(())
}
