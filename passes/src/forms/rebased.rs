//! Keeps the KV heads, each in a basis in which rounding to few levels costs least, and caches them as integers with
//! `com.microsoft.GroupQueryAttention`.
//!
//! With an invertible matrix M for each KV head, q · k = (q M⁻ᵀ) · (k M): the scores are the same in every basis, and so are
//! the outputs if values are transformed back. The operator reads as many heads of the same size as before. RoPE is applied
//! in front of it, because rotated keys are transformed.

use ndarray::{Array3, ArrayView2, Axis, s};

use crate::analysis::SiteView;
use crate::factor::{Made, Ranks, SideFactors};
use crate::forms::builder::Builder;
use crate::forms::grouped_query::operator;
use crate::forms::kept::needs_operator;
use crate::forms::layout::Layout;
use crate::forms::names::SiteNames;
use crate::forms::operator_form::{OperatorForm, Step};
use crate::forms::rounded::Rounds;
use crate::forms::{Form, FormError, Hindrance};
use crate::graph::patch::Patch;
use crate::onnx::NodeProto;
use crate::operators::Target;
use crate::recognize::site::Side;

/// The form `rebased`: the option `--keep-heads` with 6 or 4 bits.
#[derive(Debug, Clone, Copy, Default)]
pub struct RebasedHeads;

impl Form for RebasedHeads {
    fn name(&self) -> &'static str {
        "rebased"
    }

    fn target(&self) -> Target {
        Target::Gqa
    }

    fn rounds(&self) -> Rounds {
        Rounds::AboutCentre
    }

    fn keeps_heads(&self) -> bool {
        true
    }

    fn rebases_heads(&self) -> bool {
        true
    }

    fn hinders_per_head(&self) -> Option<Hindrance> {
        Some((
            "heads that are kept have one block of factors each",
            "leave out --per-head",
        ))
    }

    fn check(&self, view: &SiteView, _: Ranks) -> Result<(), FormError> {
        needs_operator(view)
    }

    /// For c channels of a head, second digits included:
    ///
    /// ```text
    /// w_dk [G, d, d]    keys of each head to its basis
    /// w_uk [G, d, c]    queries to the basis; holds every constant factor of the keys
    /// w_dv [G, d, d]    values to the basis
    /// w_uv [G, c, d]    the basis to outputs; holds every constant factor of the values
    /// b_v  [H, 1, d]    bias correction of the outputs
    /// s_k, s_v  [G*c]   scales of the channels
    /// m_k, m_v  [G, 1, d]  centres that are subtracted before rounding
    /// ```
    fn layout(&self, view: &SiteView, made: &Made, names: &SiteNames) -> Result<Layout, FormError> {
        let site = view.site();
        let Some(rounding) = made.rounding() else {
            return Err(FormError::missing("it caches no integers"));
        };
        let factors = made.latent()?.reading_second_digits(rounding);
        let mut layout = Layout::default();
        let keys = up_of_heads(&factors.key) * site.key.scale;
        let values = up_of_heads(&factors.value).permuted_axes([0, 2, 1]) * site.value.scale;
        let sides = [
            (&factors.key, &site.key, ("w_dk", "w_uk"), keys),
            (&factors.value, &site.value, ("w_dv", "w_uv"), values),
        ];
        for (factors, side, (down, up), values) in sides {
            let own = down_of_heads(factors).into_dyn();
            layout.add(names, down, site.elem_type, &own)?;
            layout.add(names, up, side.product_type, &values.into_dyn())?;
        }
        layout.add_output_bias(names, view, factors.bias.as_ref())?;
        layout.add_rounding(names, site, rounding)?;
        Ok(layout)
    }

    fn patch(
        &self,
        view: &SiteView,
        layout: &Layout,
        ranks: Ranks,
        names: &SiteNames,
    ) -> Result<Patch, FormError> {
        let old = operator(view).ok_or_else(|| FormError::missing("its operator is gone"))?;
        let mut builder = Builder::new(self.name(), view, names, layout, ranks);
        builder.retype_caches();
        let rows = builder.rows_by_head();
        builder.operator(old, rows);
        Ok(builder.finish()?)
    }
}

impl OperatorForm for RebasedHeads {
    fn with_prompt(&self) -> &'static str {
        "rebased-prompt"
    }

    fn change_caches(&self, builder: &mut Builder) {
        builder.retype_caches();
    }

    fn step(
        &self,
        builder: &mut Builder,
        old: &NodeProto,
        presents: &[String; 2],
        output: &str,
    ) -> Step {
        let rows = builder.rows_by_head();
        builder.later_step(old, rows, presents, output)
    }
}

/// The blocks [G, d, d] of w_d [G*d, G*d] on its diagonal.
fn down_of_heads(factors: &SideFactors) -> Array3<f64> {
    let (heads, size, _) = factors.up.dim();
    let own = |head: usize| {
        let own = head * size..(head + 1) * size;
        factors.down.slice(s![own.clone(), own])
    };
    stacked((0..heads).map(own), (size, size))
}

/// The columns [G, d, c] of w_u [G, d, G*c] that belong to the own head of each block.
fn up_of_heads(factors: &SideFactors) -> Array3<f64> {
    let (heads, size, all) = factors.up.dim();
    let channels = all / heads.max(1);
    let own = |head: usize| {
        let own = head * channels..(head + 1) * channels;
        factors.up.slice(s![head, .., own])
    };
    stacked((0..heads).map(own), (size, channels))
}

fn stacked<'a>(
    blocks: impl ExactSizeIterator<Item = ArrayView2<'a, f64>>,
    (rows, columns): (usize, usize),
) -> Array3<f64> {
    let mut all = Array3::zeros((blocks.len(), rows, columns));
    for (mut row, block) in all.axis_iter_mut(Axis(0)).zip(blocks) {
        row.assign(&block);
    }
    all
}

impl Builder<'_> {
    /// The nodes that compute the rows of keys and of values [B, T, G*c] for the operator's caches, each head in its basis,
    /// and the names of the rows.
    fn rows_by_head(&mut self) -> (Vec<NodeProto>, [String; 2]) {
        let site = self.site;
        let mut nodes = Vec::new();
        let rows = [(&site.key, 'k', "w_dk"), (&site.value, 'v', "w_dv")]
            .map(|(side, letter, down)| self.side_by_head(side, letter, down, &mut nodes));
        (nodes, rows)
    }

    fn side_by_head(
        &mut self,
        side: &Side,
        letter: char,
        down: &str,
        nodes: &mut Vec<NodeProto>,
    ) -> String {
        let part = |suffix: &str| format!("{letter}_{suffix}");
        let based = part("BGTr");
        let down = self.layout.name(down).to_owned();
        nodes.push(self.unary("MatMul", &based, &[&side.new, &down]));
        let (centring, rows) = self.centred(letter, self.name(&based));
        let (splitting, rows) = self.digits(letter, rows);
        nodes.extend(centring.into_iter().chain(splitting));
        let packed = self.vector(&[0, 0, -1]);
        let by_token = part("BTGr");
        let turned = self.unary("Transpose", &by_token, &[&rows]);
        nodes.push(turned.with_ints("perm", &[0, 2, 1, 3]));
        let rows = part("BTr");
        nodes.push(self.unary("Reshape", &rows, &[&self.name(&by_token), &packed]));
        self.name(&rows)
    }
}
