//! Rewrites without factors: the graph of a result, before anything is computed.

use std::error::Error;

use gqa2mla_passes::factor::Made;
use gqa2mla_passes::factor::blank::BlankFactors;
use gqa2mla_passes::pipeline::factorize::Wanted;
use gqa2mla_passes::pipeline::patches::Callbacks;
use gqa2mla_passes::pipeline::rewrite_analysed;
use gqa2mla_passes::{Analysis, Form, RewriteOptions, SiteView};

use crate::compress::convert::{ConvertError, unwritten};
use crate::files::load::LoadedModel;
use crate::fit::factors::Factorization;

/// The graph of the rewritten model, made of factors without content: it has the interface that stacks would serve, and a
/// form that cannot be applied to the exporter's nodes is refused.
pub(super) fn without_weights(
    model: &LoadedModel,
    analysis: &Analysis,
    options: &RewriteOptions,
    factorization: Factorization,
) -> Result<LoadedModel, ConvertError> {
    let mut rewritten = model.clone();
    let callbacks = Callbacks {
        factorize: &mut blank(factorization, options.form),
        store: &mut |tensor| Ok(unwritten(tensor)),
        progress: &mut |_, _| {},
    };
    let done = rewrite_analysed(&mut rewritten.model, analysis.clone(), options, callbacks);
    done.map_err(|cause| ConvertError::of(model, cause))?;
    Ok(rewritten)
}

/// Makes factors without content, of the kind of `factorization`.
pub(super) fn blank(
    factorization: Factorization,
    form: &dyn Form,
) -> impl FnMut(&SiteView, Wanted) -> Result<Made, Box<dyn Error + Send + Sync>> {
    move |view, wanted| {
        let site = view.site();
        let blank = BlankFactors {
            kv_heads: site.kv_heads,
            key_size: site.key.size,
            value_size: site.value.size,
            ranks: wanted.ranks,
            heads: form.cached_heads(site),
        };
        Ok(match factorization {
            Factorization::TransMla { .. } => blank.decoupled(),
            _ => blank.latent(wanted.bits),
        })
    }
}
