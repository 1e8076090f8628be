//! Keeps the KV heads without a latent, and caches them as integers with `com.microsoft.GroupQueryAttention`.
//!
//! The operator is otherwise unchanged, rotation included. Its integers have the zero point 0 and a constant scale for
//! each channel.

use crate::analysis::SiteView;
use crate::factor::{Made, Ranks};
use crate::forms::builder::Builder;
use crate::forms::grouped_query::{appends_nothing, no_operator, operator};
use crate::forms::layout::Layout;
use crate::forms::names::SiteNames;
use crate::forms::operator_form::{OperatorForm, Step};
use crate::forms::rounded::{Rounds, reading_integers};
use crate::forms::{Form, FormError, Hindrance};
use crate::graph::patch::Patch;
use crate::onnx::NodeProto;
use crate::operators::Target;

/// The form `kept`: the option `--keep-heads`.
#[derive(Debug, Clone, Copy, Default)]
pub struct KeptHeads;

impl Form for KeptHeads {
    fn name(&self) -> &'static str {
        "kept"
    }

    fn target(&self) -> Target {
        Target::Gqa
    }

    fn rounds(&self) -> Rounds {
        Rounds::AboutZero
    }

    fn keeps_heads(&self) -> bool {
        true
    }

    fn hinders_per_head(&self) -> Option<Hindrance> {
        Some((
            "heads that are kept have no factors",
            "leave out --per-head",
        ))
    }

    fn check(&self, view: &SiteView, _: Ranks) -> Result<(), FormError> {
        needs_operator(view)
    }

    /// `s_k` [G*d] and `s_v` [G*dv]: the scale of each channel.
    fn layout(
        &self,
        view: &SiteView,
        factors: &Made,
        names: &SiteNames,
    ) -> Result<Layout, FormError> {
        let mut layout = Layout::default();
        if let Some(rounding) = factors.rounding() {
            layout.add_rounding(names, view.site(), rounding)?;
        }
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
        let node = reading_integers(old.clone(), layout);
        // The new operator replaces the node that computes the first output of the old one, and also computes the
        // presents.
        let makers = old.output.iter().filter_map(|o| builder.graph.producer(o));
        let makers: Vec<_> = makers.map(|(id, _)| id).collect();
        let mut nodes = Some(node);
        for id in makers {
            builder.place(id, nodes.take().into_iter().collect());
        }
        Ok(builder.finish()?)
    }
}

/// Refuses an attention that `GroupQueryAttention` does not compute.
pub fn needs_operator(view: &SiteView) -> Result<(), FormError> {
    match operator(view) {
        Some(_) if appends_nothing(view) => Err(FormError::Refused(
            "it reads the cache of another layer: leave out --keep-heads, and the caches hold latents"
                .to_owned(),
        )),
        Some(_) => Ok(()),
        None => Err(FormError::Refused(format!(
            "{}: leave out --keep-heads, and the cache holds a latent",
            no_operator(view)
        ))),
    }
}

impl OperatorForm for KeptHeads {
    fn with_prompt(&self) -> &'static str {
        "kept-prompt"
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
        let mut operator = reading_integers(old.clone(), builder.layout);
        let [keys, values] = presents.clone();
        operator.output = vec![builder.name("out_BTx"), keys, values];
        let mut nodes = vec![operator];
        nodes.extend(builder.by_head("out_BTHd", &builder.name("out_BTx"), output));
        Step {
            shared: Vec::new(),
            rows: None,
            nodes,
        }
    }
}
