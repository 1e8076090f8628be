//! A form of one's own, added from outside: the cached heads lie side by side in one head, and are split when they are read.
#![allow(clippy::unwrap_used, missing_docs)]

use gqa2mla::forms::{Builder, Form, FormError, Layout, Made, Patch, Ranks, SiteNames, SiteView};
use gqa2mla::{Model, Rewriter, forms::node};

struct SideBySide;

impl Form for SideBySide {
    fn name(&self) -> &'static str {
        "side-by-side"
    }

    fn check(&self, _: &SiteView, _: Ranks) -> Result<(), FormError> {
        Ok(())
    }

    fn layout(&self, _: &SiteView, _: &Made, _: &SiteNames) -> Result<Layout, FormError> {
        Ok(Layout::default())
    }

    #[rustfmt::skip]
    fn patch(&self, view: &SiteView, layout: &Layout, ranks: Ranks, names: &SiteNames) -> Result<Patch, FormError> {
        let (mut b, site) = (Builder::new(self.name(), view, names, layout, ranks), view.site());
        b.narrow_caches();
        for (side, k) in [(&site.key, "k"), (&site.value, "v")] {
            let cache = side.cache.as_ref().ok_or_else(|| FormError::missing("it has no cache"))?;
            let past = cache.past.as_ref().ok_or_else(|| FormError::missing("it has no past"))?;
            let (heads, size) = (site.kv_heads as i64, side.size as i64);
            let (joined, split) = (b.vector(&[0, 1, -1, heads * size]), b.vector(&[0, -1, heads, size]));
            let name = |part: &str| format!("{k}_{part}");
            let nodes = vec![
                b.unary("Transpose", &name("BTGd"), &[&side.new]).with_ints("perm", &[0, 2, 1, 3]),
                b.unary("Reshape", &name("B1Tx"), &[&b.name(&name("BTGd")), &joined]),
                node("Concat", &b.name(&name("append")), &[past, &b.name(&name("B1Tx"))], &[&cache.joined]).with_int("axis", 2),
                b.unary("Reshape", &name("BSGd"), &[&cache.joined, &split]),
                b.unary("Transpose", &name("BGSd"), &[&b.name(&name("BSGd"))]).with_ints("perm", &[0, 2, 1, 3]),
            ];
            b.place(cache.append, nodes);
            b.redirect(&cache.joined, b.name(&name("BGSd")));
        }
        Ok(b.finish()?)
    }
}

#[test]
fn a_form_from_outside_rewrites_and_explains_itself() {
    let mut model = Model::open("fixtures/optimum-llama").unwrap();
    let done = Rewriter::new().form(&SideBySide).run(&mut model).unwrap();
    insta::assert_snapshot!(done.explain());
}
