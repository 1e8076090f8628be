//! Properties of an interface that the declared inputs and outputs do not tell, but the nodes of the graph.

use gqa2mla_passes::analysis::new_rows::NewRows;

use crate::runtime::tensor::ElementType;
use crate::validate::cache::{CacheKind, CachePort};
use crate::validate::interface::{Input, Interface, Unfed};
use crate::validate::port::{AxisSize, Port, Role};
use crate::validate::roles::element;

impl Interface {
    /// The same interface with the inputs `ports`, which have default values.
    #[must_use]
    pub fn with_defaults(self, ports: Vec<Port>) -> Self {
        Self {
            defaults: ports,
            ..self
        }
    }

    /// The same interface with the caches that have the past inputs `pasts` marked as giving their new rows alone.
    #[must_use]
    pub fn giving_new_rows(mut self, pasts: &[NewRows]) -> Self {
        for cache in &mut self.caches {
            let Some(rows) = pasts.iter().find(|rows| rows.past == cache.past) else {
                continue;
            };
            cache.gives_new_rows = true;
            // As many new rows as past ones look like a state of constant size.
            if let (None, Some(AxisSize::Fixed(_))) = (cache.length_axis, cache.dims.get(rows.axis))
            {
                (cache.kind, cache.length_axis) = (CacheKind::Window, Some(rows.axis));
            }
        }
        self
    }

    /// The same interface with the caches that have the past inputs `pasts` marked as written in place.
    #[must_use]
    pub fn written_in_place<'p>(mut self, pasts: impl Iterator<Item = &'p str>) -> Self {
        for past in pasts {
            let mut caches = self.caches.iter_mut();
            if let Some(cache) = caches.find(|cache| cache.past == past) {
                cache.kind = CacheKind::InPlace;
            }
        }
        self
    }

    /// The same interface with the roles of integer inputs that an operator counts tokens by.
    #[must_use]
    pub fn counted_by<'p>(mut self, counters: impl Iterator<Item = (&'p str, Role)>) -> Self {
        for (name, role) in counters {
            let of_integers = |u: &Unfed| element(&u.port).is_ok_and(ElementType::is_integer);
            let mut unfed = self.unfed.iter();
            if let Some(at) = unfed.position(|u| u.port.name == name && of_integers(u)) {
                let port = self.unfed.remove(at).port;
                self.inputs.extend(Input::of(port, role));
            }
            let counts = [Role::Given, Role::PastLength, Role::TotalLength];
            let known = self.inputs.iter_mut().find(|i| i.name == name);
            if let Some(known) = known.filter(|known| counts.contains(&known.role)) {
                known.role = role;
            }
        }
        self
    }

    /// The same interface, which feeds anything to an input that no node reads and whose role is not known, such as the pasts
    /// that an exporter declares for layers without a cache.
    #[must_use]
    pub fn leaving_unread(mut self, is_unread: impl Fn(&str) -> bool) -> Self {
        let unread = self.unfed.extract_if(.., |unfed| {
            is_unread(&unfed.port.name) && element(&unfed.port).is_ok()
        });
        let unread: Vec<Port> = unread.map(|unfed| unfed.port).collect();
        self.inputs.extend(
            unread
                .into_iter()
                .flat_map(|port| Input::of(port, Role::Given)),
        );
        self
    }

    /// The same interface with the caches that `rings` names by their past inputs marked as ring buffers, each with its
    /// number of rows.
    #[must_use]
    pub fn held_in_rings<'p>(mut self, rings: impl Iterator<Item = (&'p str, usize)>) -> Self {
        for (past, rows) in rings {
            let mut caches = self.caches.iter_mut();
            let cache = caches.find(|cache| cache.past == past);
            if let Some((cache, axis)) = cache.and_then(|c| c.length_axis.take().map(|a| (c, a))) {
                cache.kind = CacheKind::Ring;
                if let Some(dim) = cache.dims.get_mut(axis) {
                    *dim = AxisSize::Fixed(rows);
                }
            }
        }
        self
    }

    /// The same interface with the caches that `buffers` names by their past inputs marked as static caches, each with
    /// the axis of its rows, possibly negative.
    #[must_use]
    pub fn held_in_buffers<'p>(mut self, buffers: impl Iterator<Item = (&'p str, i64)>) -> Self {
        for (past, axis) in buffers {
            let mut caches = self.caches.iter_mut();
            let cache = caches.find(|cache| cache.past == past);
            let place = |cache: &CachePort| {
                let rank = i64::try_from(cache.dims.len()).unwrap_or(0);
                usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()
            };
            if let Some((axis, cache)) = cache.and_then(|c| Some((place(c)?, c))) {
                cache.kind = CacheKind::Static;
                cache.length_axis = Some(axis);
            }
        }
        self
    }
}
