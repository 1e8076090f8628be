//! The patches of all graphs of a model, computed one attention at a time. The graphs are changed afterwards.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::analysis::identity::{CacheId, SiteId};
use crate::analysis::placed::{PlacedSite, Raising};
use crate::analysis::{Analysis, SiteView};
use crate::factor::{CacheBits, Factors, Made, Ranks, SideFactors};
use crate::forms::{FormError, Layout, Names, SiteNames, Store};
use crate::graph::patch::Patch;
use crate::graph::scopes::Scope;
use crate::graph::{Graph, label};
use crate::onnx::stored::Model;
use crate::pipeline::error::RewriteError;
use crate::pipeline::explain::Explained;
use crate::pipeline::factorize::{Factorize, Wanted};
use crate::pipeline::options::RewriteOptions;
use crate::recognize::site::Site;

/// One rewritten attention.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RewrittenSite {
    /// The attention before the rewrite.
    pub site: Site,
    /// The unique name of the attention in its model.
    pub id: SiteId,
    /// Its ranks.
    pub ranks: Ranks,
    /// The ranks at which the form is exact for this attention.
    pub full: Ranks,
    /// Whether a rank is below `full`.
    pub is_narrow: bool,
    /// Bits of a cached number.
    pub bits: CacheBits,
    /// ONNX element type of the rewritten cache.
    pub cached_type: i32,
    /// Whether the heads are cached without a latent.
    pub keeps_heads: bool,
    /// Elements per token of the rewritten cache; two 4-bit numbers are one element.
    pub cached_elements: usize,
    /// Whether it was written as products, whose place `GroupQueryAttention` has taken.
    pub raised: bool,
    /// The predicted loss of the keys.
    pub key: Expected,
    /// The predicted loss of the values.
    pub value: Expected,
}

impl RewrittenSite {
    /// Whether the rewrite is an approximation: a rank is below the lossless one, or cached numbers are rounded.
    #[must_use]
    pub fn loses(&self) -> bool {
        self.is_narrow || self.bits != CacheBits::Model
    }
}

/// The predicted loss of the factors of one side.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Weighted second moment along each eigenvector, largest first; empty at full rank or for factors without a
    /// spectrum.
    pub spectrum: Vec<f64>,
    /// Share of the weighted second moment that is lost, from 0 to 1; `None` for factors without a spectrum.
    pub loss: Option<f64>,
}

impl Expected {
    fn of(side: &SideFactors) -> Self {
        Self {
            spectrum: side.spectrum.to_vec(),
            loss: Some(side.predicted_error()),
        }
    }

    /// The predicted losses of keys and values. TransMLA factors have none, because a spectrum does not contain the
    /// loss by dropped rotation.
    fn of_both(factors: &Made) -> (Self, Self) {
        match factors {
            Made::Latent(f) | Made::Rounded(f, _) => (Self::of(&f.key), Self::of(&f.value)),
            Made::Joint(f) | Made::JointRounded(f, _) => {
                let both = Self {
                    spectrum: f.spectrum.to_vec(),
                    loss: Some(f.predicted_error()),
                };
                (both.clone(), both)
            }
            Made::Decoupled(_) => Default::default(),
        }
    }
}

/// The callbacks of a rewrite: factorization, storage of tensors, progress.
pub struct Callbacks<'o, 'f, 's> {
    /// Computes the factors of an attention.
    pub factorize: &'o mut Factorize<'f>,
    /// Stores a new tensor.
    pub store: &'o mut Store<'s>,
    /// Called after each attention with (done, total).
    pub progress: &'o mut dyn FnMut(usize, usize),
}

/// The factors of one cache, shared by the branches of an `If` and by all attentions that read it.
struct SharedFactors {
    factors: Made,
    ranks: Ranks,
    /// Each layout with the position of the attention that it was made for, and what else it depends on.
    layouts: Vec<(usize, Products, Layout)>,
}

/// The constant scales of keys and values, and the element types of the products: what initializers depend on besides factors.
#[derive(Clone, Copy, PartialEq)]
struct Products([(f64, i32); 2]);

impl Products {
    fn of(site: &Site) -> Self {
        Self([&site.key, &site.value].map(|side| (side.scale, side.product_type)))
    }
}

/// The patches of all graphs of a model.
pub struct Patches<'a> {
    analysis: &'a Analysis,
    options: &'a RewriteOptions<'a>,
    names: Names,
    shared: HashMap<CacheId, SharedFactors>,
    /// The patch of each graph.
    pub by_scope: BTreeMap<Scope, Patch>,
    /// The rewritten attentions.
    pub done: Vec<RewrittenSite>,
    /// The text of each rewritten attention.
    pub explained: Vec<Explained>,
}

/// What tells an attention from others: its cache, and which of the readers of this cache it is.
fn attention(placed: &PlacedSite) -> (CacheId, usize) {
    (placed.cache.clone(), placed.reader)
}

impl<'a> Patches<'a> {
    /// Makes the patches that rewrite all sites of `analysis`, and that restore the expanded operators of which no site
    /// is rewritten.
    ///
    /// # Errors
    /// [`RewriteError`] with the layer.
    pub fn make(
        model: &Model,
        analysis: &'a Analysis,
        options: &'a RewriteOptions,
        callbacks: &mut Callbacks,
    ) -> Result<Self, RewriteError> {
        let mut all = Self {
            analysis,
            options,
            names: Names::of(&analysis.main),
            shared: HashMap::new(),
            by_scope: BTreeMap::new(),
            done: Vec::new(),
            explained: Vec::new(),
        };
        // An attention that stands in several branches counts once.
        let attentions: HashSet<_> = analysis.sites.iter().map(attention).collect();
        let mut seen = HashSet::new();
        analysis.visit::<RewriteError>(model, &mut |view| {
            all.rewrite(view, callbacks)?;
            if seen.insert(attention(view.placed)) {
                (callbacks.progress)(seen.len(), attentions.len());
            }
            Ok(())
        })?;
        all.put_back_operators()?;
        Ok(all)
    }

    fn rewrite(&mut self, view: &SiteView, callbacks: &mut Callbacks) -> Result<(), RewriteError> {
        let site = view.site();
        let form = self.options.form;
        let refused = |cause| RewriteError::form(site.layer, form, cause);
        let score = view.graph.node(site.score).map_or("", label);
        let prefix = self.names.prefix(score);
        let names = SiteNames::new(prefix, &self.names);
        let mut shared = match self.shared.remove(&view.placed.cache) {
            Some(shared) => shared,
            None => self.factors(view, callbacks.factorize)?,
        };
        let (reader, products) = (view.placed.reader, Products::of(site));
        let alike = || shared.layouts.iter().filter(|(_, p, _)| *p == products);
        let known = alike().find(|(of, _, _)| *of == reader);
        let layout = match known.map(|(_, _, layout)| layout.clone()) {
            Some(layout) => layout,
            None => {
                let own = self
                    .layout(view, &shared.factors, &names)
                    .map_err(refused)?;
                let mut layout = match alike().next() {
                    Some((_, _, first)) => first.for_reader(&own, self.options.per_head),
                    None => own,
                };
                let main = self.by_scope.entry(Scope::default()).or_default();
                for tensor in layout.tensors.drain(..) {
                    // Shared tensors are named by their content.
                    if main.initializers.iter().any(|t| t.name() == tensor.name()) {
                        continue;
                    }
                    let stored = (callbacks.store)(tensor).map_err(RewriteError::Store)?;
                    main.initializers.push(stored);
                }
                shared.layouts.push((reader, products, layout.clone()));
                layout
            }
        };
        let mut patch = form
            .patch(view, &layout, shared.ranks, &names)
            .map_err(refused)?;
        self.explained.push(Explained::of(
            view,
            self.analysis,
            (form, shared.ranks, self.options.bits),
            (&patch, names.prefix()),
        ));
        for (scope, change) in view.placed.interface(&self.analysis.main, &mut patch) {
            let outer = self.by_scope.entry(scope).or_default();
            outer.merge(change).map_err(RewriteError::Patch)?;
        }
        let own = self.by_scope.entry(view.placed.scope.clone()).or_default();
        if reader > 0 {
            // The first reader has put the latent in place of the cache, for all of them.
            patch.leave_what(own);
        }
        own.merge(patch).map_err(RewriteError::Patch)?;
        let (key, value) = Expected::of_both(&shared.factors);
        self.done.push(RewrittenSite {
            site: site.clone(),
            id: view.id().clone(),
            ranks: shared.ranks,
            full: form.full_ranks(site),
            is_narrow: form.loses(shared.ranks, site),
            bits: self.options.bits,
            cached_type: form
                .rounds()
                .element_type(self.options.bits)
                .unwrap_or(site.cached_type),
            keeps_heads: form.keeps_heads(),
            cached_elements: form.cached_elements(self.options.bits, shared.ranks, site),
            raised: view.placed.raising == Raising::Raised,
            key,
            value,
        });
        // Factors are kept only for branches that are still to come.
        let sites = self.analysis.sites.iter();
        let sharing = sites.filter(|p| p.cache == view.placed.cache);
        let made = self.done.iter().filter(|d| d.id == *view.id());
        if sharing.count() > made.count() {
            self.shared.insert(view.placed.cache.clone(), shared);
        }
        Ok(())
    }

    /// The initializers of the attention of `view` with `factors`, if it were the only reader of its cache.
    fn layout(
        &self,
        view: &SiteView,
        factors: &Made,
        names: &SiteNames,
    ) -> Result<Layout, FormError> {
        let form = self.options.form;
        let mut layout = match self.options.per_head {
            false => form.layout(view, factors, names)?,
            true => {
                let factors = factors.for_every_head(view.site().heads);
                let mut layout = form.layout(view, &factors, names)?;
                layout.own_up_projections(names);
                layout
            }
        };
        layout.join = self.options.join;
        let caches = self.analysis.sites.iter().flat_map(PlacedSite::caches);
        let pasts = caches.filter_map(|(_, cache)| cache.past.clone());
        layout.pasts = pasts.collect();
        layout.integers = form.rounds().element_type(layout.bits);
        Ok(layout)
    }

    fn factors(
        &self,
        view: &SiteView,
        factorize: &mut Factorize,
    ) -> Result<SharedFactors, RewriteError> {
        let ranks = self.options.ranks_of(view.id(), view.site());
        let wanted = Wanted {
            ranks,
            bits: self.options.bits,
            context: self.options.positions(),
        };
        let made = factorize(view, wanted);
        let mut factors = made.map_err(|cause| RewriteError::Factor {
            layer: view.site().layer,
            cause,
        })?;
        if let Made::Latent(factors) = &mut factors {
            self.spare_what_need_not_be_lost(view, ranks, factors);
        }
        Ok(SharedFactors {
            factors,
            ranks,
            layouts: Vec::new(),
        })
    }

    /// Replaces computed factors by exact ones for each side whose rank is at least the lossless one.
    fn spare_what_need_not_be_lost(&self, view: &SiteView, ranks: Ranks, factors: &mut Factors) {
        let site = view.site();
        let full = self.options.form.full_ranks(site);
        let exact = |side, own: usize, full: usize| {
            (own >= full).then(|| view.lossless(side, own)).flatten()
        };
        if let Some(key) = exact(&site.key, ranks.key, full.key) {
            factors.key = key;
        }
        if let Some(value) = exact(&site.value, ranks.value, full.value) {
            factors.value = value;
            factors.bias = None;
        }
    }

    /// Restores the expanded operators that contain no rewritten attention.
    fn put_back_operators(&mut self) -> Result<(), RewriteError> {
        let analysis = self.analysis;
        for operator in &analysis.lowered {
            let is_rewritten = |placed: &PlacedSite| {
                let graph = placed.scope.get(&analysis.main);
                let products = [placed.site.score, placed.site.output];
                let mut products = products.iter().filter_map(|id| graph?.node.get(id.0));
                let sides = [&placed.site.key, &placed.site.value];
                let mut paths = sides.into_iter().flat_map(|side| &side.path);
                placed.scope == operator.scope
                    && (products.any(|n| n.output.iter().any(|o| operator.made.contains(o)))
                        || paths.any(|value| operator.made.contains(value)))
            };
            if analysis.sites.iter().any(is_rewritten) {
                continue;
            }
            let Some(graph) = operator.scope.get(&analysis.main) else {
                continue;
            };
            let own = self.by_scope.entry(operator.scope.clone()).or_default();
            let patch = operator.put_back(&Graph::new(graph));
            own.merge(patch).map_err(RewriteError::Patch)?;
        }
        Ok(())
    }
}
