//! The form of TransMLA (arXiv 2502.07864): one rotated head, and one latent of unrotated keys and values.
//!
//! ```text
//! k_rope = rotate(k w_kr)          cached in place of the keys, d numbers
//! c = k w_ck + v w_cv              cached in place of the values, k unrotated
//! score_h = rotate(q_h w_qr[j]) · k_rope + (q_h w_qc[j]) · c
//! out_h = (p_h C) w_uv[j]
//! ```
//!
//! Unrotated rows are computed as rows rotated by position 0, so that other operations of the exporter's nodes, such as
//! scales, are kept.

use std::collections::HashMap;

use crate::analysis::SiteView;
use crate::analysis::identity::SiteId;
use crate::factor::{Made, Ranks};
use crate::forms::builder::Builder;
use crate::forms::layout::Layout;
use crate::forms::names::SiteNames;
use crate::forms::{Form, FormError, Hindrance, RankPlan};
use crate::graph::build::node;
use crate::graph::patch::Patch;
use crate::onnx::NodeProto;
use crate::recognize::rotation::{Rotated, Rotation};
use crate::recognize::site::{Cache, Site};

/// The form `decoupled`, for comparison. It is never exact.
#[derive(Debug, Clone, Copy, Default)]
pub struct Decoupled;

impl Form for Decoupled {
    fn name(&self) -> &'static str {
        "decoupled"
    }

    fn is_exact_at_full_rank(&self) -> bool {
        false
    }

    fn hinders_in_place(&self) -> Option<Hindrance> {
        None
    }

    fn largest_rank(&self, site: &Site) -> usize {
        site.cached_numbers()
    }

    /// The cache has as many elements per token as in the other forms; d of them are the rotated head.
    fn ranks(&self, plan: &RankPlan, id: &SiteId, site: &Site) -> Ranks {
        let all = match plan {
            RankPlan::Ratio(ratio) => (ratio * site.cached_numbers() as f64 + 1e-9) as usize,
            other => {
                let ranks = other.ranks(id, site, self.full_ranks(site), self.rank_step());
                ranks.key + ranks.value
            }
        };
        Ranks {
            key: site.key.size,
            value: all.saturating_sub(site.key.size),
        }
    }

    fn check(&self, view: &SiteView, _: Ranks) -> Result<(), FormError> {
        if !view.is_in_main_graph() {
            return Err(FormError::missing("it stands in a branch"));
        }
        if !view.site().is_cached() {
            return Err(FormError::missing("it has no cache"));
        }
        key_rotation(view).map(|_| ())
    }

    /// `w_kr` [G*d, d], `w_ck` [G*d, r], `w_cv` [G*dv, r], `w_qr` [G, d, d], `w_qc` [G, d, r], `w_uv` [G, r, dv].
    fn layout(
        &self,
        view: &SiteView,
        factors: &Made,
        names: &SiteNames,
    ) -> Result<Layout, FormError> {
        let Made::Decoupled(factors) = factors else {
            return Err(FormError::missing("its factors are not TransMLA's"));
        };
        let site = view.site();
        let cached = site.elem_type;
        let mut layout = Layout::default();
        let mut add = |role, elem_type, values| layout.add(names, role, elem_type, &values);
        add("w_kr", cached, factors.rope_key.clone().into_dyn())?;
        add("w_ck", cached, factors.down_key.clone().into_dyn())?;
        add("w_cv", cached, factors.down_value.clone().into_dyn())?;
        let rope_query = &factors.rope_query * site.key.scale;
        add("w_qr", site.key.product_type, rope_query.into_dyn())?;
        let up_query = &factors.up_query * site.key.scale;
        add("w_qc", site.key.product_type, up_query.into_dyn())?;
        let up_value = (&factors.up_value * site.value.scale).permuted_axes([0, 2, 1]);
        add("w_uv", site.value.product_type, up_value.into_dyn())?;
        Ok(layout)
    }

    fn patch(
        &self,
        view: &SiteView,
        layout: &Layout,
        ranks: Ranks,
        names: &SiteNames,
    ) -> Result<Patch, FormError> {
        let keys = key_rotation(view)?;
        let queries = view.query_rotation();
        let mut builder = Builder::new(self.name(), view, names, layout, ranks);
        let done = match &queries {
            Rotated::By(queries) if !queries.packed => builder.decouple(keys, queries),
            _ => None,
        };
        done.ok_or_else(|| FormError::missing("the rotation of its queries is not followed"))?;
        Ok(builder.finish()?)
    }
}

/// The rotation of the keys, which must rotate whole, separate heads.
fn key_rotation<'v>(view: &'v SiteView) -> Result<&'v Rotation, FormError> {
    let rotation = match view.rotation() {
        Rotated::By(rotation) => rotation,
        Rotated::No => return Err(FormError::missing("its keys are not rotated")),
        Rotated::Unknown(missing) => {
            return Err(FormError::missing(&format!(
                "the rotation of its keys is not recognised: {missing}"
            )));
        }
    };
    if rotation.packed {
        return Err(FormError::missing("its heads are split after the rotation"));
    }
    if rotation.part.is_some() || !rotation.interleaved && !rotation.whole {
        return Err(FormError::missing("only a part of each head is rotated"));
    }
    Ok(rotation)
}

impl Builder<'_> {
    /// Makes the whole patch; `None` if a `Reshape` of a rotation cannot be applied to other rows.
    fn decouple(&mut self, keys: &Rotation, queries: &Rotation) -> Option<()> {
        let site = self.site;
        let (key_cache, value_cache) = (site.key.cache.as_ref()?, site.value.cache.as_ref()?);
        self.narrow_caches();
        let key_nodes = self.keys(keys)?;
        self.place(key_cache.append, key_nodes);
        let value_nodes = self.latents(keys)?;
        self.place(value_cache.append, value_nodes);
        let score_nodes = self.scores(queries)?;
        self.place(site.score, score_nodes);
        self.values();
        self.answer_shapes();
        self.drop_paths();
        Some(())
    }

    /// The nodes that turn `rows` [B, G, T, size] into [B, T, G*size], and the name of the result.
    fn by_token(&mut self, part: &str, rows: &str, size: usize) -> (Vec<NodeProto>, String) {
        let packed = self.vector(&[0, 0, (self.site.kv_heads * size) as i64]);
        let transposed = format!("{part}_BTGd");
        let flat = format!("{part}_BTx");
        let nodes = vec![
            self.unary("Transpose", &transposed, &[rows])
                .with_ints("perm", &[0, 2, 1, 3]),
            self.unary("Reshape", &flat, &[&self.name(&transposed), &packed]),
        ];
        (nodes, self.name(&flat))
    }

    /// A copy of `rotation` on its own rows with all positions 0.
    fn at_zero(&mut self, rotation: &Rotation, tag: &str) -> Option<(Vec<NodeProto>, String)> {
        let (zero, of) = (format!("{tag}/zero"), &rotation.positions.value);
        let mut nodes = vec![self.unary("Sub", &zero, &[of, of])];
        let mut names = HashMap::from([(of.clone(), self.name(&zero))]);
        let all: Vec<_> = rotation.tables.iter().chain(&rotation.nodes).collect();
        nodes.extend(self.copies(rotation, &all, &mut names, tag)?);
        Some((nodes, self.last_of(rotation, &names)?))
    }

    /// A copy of `rotation` on other `rows` at the same positions.
    fn with_rope(
        &mut self,
        rotation: &Rotation,
        rows: String,
        tag: &str,
    ) -> Option<(Vec<NodeProto>, String)> {
        let mut names = HashMap::from([(rotation.input.clone(), rows)]);
        let all: Vec<_> = rotation.nodes.iter().collect();
        let nodes = self.copies(rotation, &all, &mut names, tag)?;
        Some((nodes, self.last_of(rotation, &names)?))
    }

    fn keys(&mut self, rotation: &Rotation) -> Option<Vec<NodeProto>> {
        let cache = self.site.key.cache.as_ref()?;
        let one = self.vector(&[1]);
        let (mut nodes, flat) = self.by_token("k", &rotation.input, self.site.key.size);
        let (down, head) = (self.layout.name("w_kr").to_owned(), self.name("k_B1Td"));
        nodes.push(self.unary("MatMul", "k_BTd", &[&flat, &down]));
        nodes.push(self.unary("Unsqueeze", "k_B1Td", &[&self.name("k_BTd"), &one]));
        let (more, rotated) = self.with_rope(rotation, head, "rope")?;
        nodes.extend(more);
        nodes.push(self.appended(cache, &rotated)?);
        Some(nodes)
    }

    /// The node that adds `rows` to a cache.
    fn appended(&mut self, cache: &Cache, rows: &str) -> Option<NodeProto> {
        let past = cache.appended_to()?;
        Some(self.join(cache, past, rows))
    }

    fn latents(&mut self, rotation: &Rotation) -> Option<Vec<NodeProto>> {
        let cache = self.site.value.cache.as_ref()?;
        let one = self.vector(&[1]);
        let (mut nodes, unrotated) = self.at_zero(rotation, "still_k")?;
        let (more, keys) = self.by_token("still_k", &unrotated, self.site.key.size);
        nodes.extend(more);
        let (more, values) = self.by_token("v", &self.site.value.new, self.site.value.size);
        nodes.extend(more);
        let (w_ck, w_cv) = (
            self.layout.name("w_ck").to_owned(),
            self.layout.name("w_cv").to_owned(),
        );
        nodes.extend([
            self.unary("MatMul", "c_of_k_BTr", &[&keys, &w_ck]),
            self.unary("MatMul", "c_of_v_BTr", &[&values, &w_cv]),
            self.unary(
                "Add",
                "c_BTr",
                &[&self.name("c_of_k_BTr"), &self.name("c_of_v_BTr")],
            ),
            self.unary("Unsqueeze", "c_B1Tr", &[&self.name("c_BTr"), &one]),
        ]);
        nodes.push(self.appended(cache, &self.name("c_B1Tr"))?);
        Some(nodes)
    }

    fn scores(&mut self, rotation: &Rotation) -> Option<Vec<NodeProto>> {
        let site = self.site;
        let (key, value) = (site.key.cache.as_ref()?, site.value.cache.as_ref()?);
        let size = site.key.size as i64;
        let grouped = self.vector(&[0, site.kv_heads as i64, -1, size]);
        let by_head = self.vector(&[0, site.heads as i64, -1, size]);
        let rope_rows = self.vector(&[0, 1, -1, size]);
        let latent_rows = self.vector(&[0, 1, -1, self.ranks.value as i64]);
        let scores = self.vector(&[0, site.heads as i64, -1, 0]);
        let (w_qr, w_qc) = (
            self.layout.name("w_qr").to_owned(),
            self.layout.name("w_qc").to_owned(),
        );
        let mut nodes = vec![
            self.unary("Reshape", "qr_BGxd", &[&rotation.input, &grouped]),
            self.unary("MatMul", "qr_mixed_BGxd", &[&self.name("qr_BGxd"), &w_qr]),
            self.unary(
                "Reshape",
                "qr_BHTd",
                &[&self.name("qr_mixed_BGxd"), &by_head],
            ),
        ];
        let (more, rotated) = self.with_rope(rotation, self.name("qr_BHTd"), "rope_q")?;
        nodes.extend(more);
        let (more, still) = self.at_zero(rotation, "still_q")?;
        nodes.extend(more);
        let turn = |n: NodeProto| n.with_ints("perm", &[0, 1, 3, 2]);
        let (name, output) = self.names_of(site.score);
        nodes.extend([
            self.unary("Reshape", "qr_B1xd", &[&rotated, &rope_rows]),
            turn(self.unary("Transpose", "k_B1dS", &[&key.joined])),
            self.unary(
                "MatMul",
                "score_rope_B1xS",
                &[&self.name("qr_B1xd"), &self.name("k_B1dS")],
            ),
            self.unary("Reshape", "qc_BGxd", &[&still, &grouped]),
            self.unary("MatMul", "qc_BGxr", &[&self.name("qc_BGxd"), &w_qc]),
            self.unary("Reshape", "qc_B1xr", &[&self.name("qc_BGxr"), &latent_rows]),
            turn(self.unary("Transpose", "c_B1rS", &[&value.joined])),
            self.unary(
                "MatMul",
                "score_c_B1xS",
                &[&self.name("qc_B1xr"), &self.name("c_B1rS")],
            ),
            self.unary(
                "Add",
                "score_B1xS",
                &[&self.name("score_rope_B1xS"), &self.name("score_c_B1xS")],
            ),
            node(
                "Reshape",
                &name,
                &[&self.name("score_B1xS"), &scores],
                &[&output],
            ),
        ]);
        Some(nodes)
    }

    fn values(&mut self) {
        let site = self.site;
        let Some(cache) = &site.value.cache else {
            return;
        };
        let rows = self.vector(&[0, 1, -1, 0]);
        let grouped = self.vector(&[0, site.kv_heads as i64, -1, self.ranks.value as i64]);
        let up = self.layout.name("w_uv").to_owned();
        let mut nodes = vec![
            self.unary("Reshape", "p_B1xS", &[&site.probabilities, &rows]),
            self.unary("MatMul", "out_B1xr", &[&self.name("p_B1xS"), &cache.joined]),
            self.unary("Reshape", "out_BGxr", &[&self.name("out_B1xr"), &grouped]),
            self.unary("MatMul", "out_BGxd", &[&self.name("out_BGxr"), &up]),
        ];
        let (name, output) = self.names_of(site.output);
        nodes.extend(self.heads_out(&self.name("out_BGxd"), &name, &output));
        self.place(site.output, nodes);
    }
}
