//! `com.microsoft.GroupQueryAttention` in place of attentions that are written as products.
//!
//! ```text
//! before   out [B, H, T, d] = softmax(mask(scale * q k^T)) v     with k, v repeated, and appended to their pasts by Concat
//! after    GroupQueryAttention(q [B, T, H*d], k, v [B, T, G*d], pasts, seqlens_k [B], total, attention_bias [., ., T, S])
//! ```
//!
//! The operator (ONNX Runtime contrib operator specification) repeats no heads, reads the cache once for each KV head, and
//! writes the presents itself, so that past and present can share a buffer. RoPE and projections stay in front of it. The
//! mask becomes the operator's additive bias; besides, a token never reads later ones, so that the mask has to be causal,
//! which a run of both graphs shows. The target `gqa` raises all attentions of a model before its forms see them, or none.
//!
//! What the operator cannot do and products can: continue several sequences by more than one token at a time.

mod bias;
mod lengths;

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::analysis::identity::SiteId;
use crate::analysis::lowering::LoweredOperator;
use crate::analysis::view::SiteView;
use crate::graph::build::node;
use crate::graph::cleanup::{Live, cleanup};
use crate::graph::patch::{Patch, PatchError, apply};
use crate::graph::{is_op, label};
use crate::onnx::{GraphProto, NodeProto, OperatorSetIdProto, tensor_proto::DataType};
use crate::operators::Primitives;
use crate::recognize::append::CacheKind;
use crate::recognize::site::{Cache, Site};
use bias::bias;
use lengths::Lengths;
pub use lengths::reads_room;

/// The head size of the operator must be a multiple of this.
const HEAD_STEP: usize = 8;

/// The operator's domain.
const DOMAIN: &str = "com.microsoft";

/// The attentions of a model that cannot be raised, with the reasons.
pub type Hindrances = BTreeMap<SiteId, String>;

/// Collects the attentions of a main graph that are raised.
#[derive(Default)]
pub struct Raise {
    patch: Patch,
    /// Values that all attentions share, by their sharing key.
    shared: HashMap<String, String>,
    hindrances: Hindrances,
    /// The label of the score product of each attention.
    products: Vec<(SiteId, String)>,
    /// The names of the attentions.
    names: HashSet<String>,
}

impl Raise {
    /// Raises the attention of `view`.
    ///
    /// # Errors
    /// [`PatchError`] if another attention replaces the same nodes.
    pub fn add(&mut self, view: &SiteView) -> Result<(), PatchError> {
        let mut name = view.site().name.clone();
        while !self.names.insert(name.clone()) {
            name.push('+');
        }
        match raised(view, &name, &mut self.shared) {
            Ok(own) => self.patch.merge(own)?,
            Err(reason) => {
                self.hindrances.insert(view.id().clone(), reason);
            }
        }
        let product = view.graph.node(view.site().score);
        let named = product.map(|n| (view.id().clone(), label(n).to_owned()));
        self.products.extend(named);
        Ok(())
    }

    /// `main`, in which the operators `lowered` are expanded, with all its attentions raised. If one of them cannot be, none
    /// is: then the reasons.
    ///
    /// # Errors
    /// [`PatchError`] if the operators do not fit into the graph.
    pub fn finish(
        self,
        main: &GraphProto,
        lowered: &[LoweredOperator],
    ) -> Result<Result<GraphProto, Hindrances>, PatchError> {
        let mut hindrances = self.hindrances;
        if !hindrances.is_empty() {
            return Ok(Err(hindrances));
        }
        let mut main = main.clone();
        let mut before = Live::of(&main);
        for operator in lowered {
            let made = operator.made.iter();
            before.made_for_the_rewrite(made.filter(|v| !operator.node.output.contains(v)));
        }
        apply(self.patch, &mut main)?;
        cleanup(&mut main, &before);
        for (id, product) in self.products {
            if main.node.iter().any(|n| label(n) == product) {
                let reason = format!(
                    "'{product}' is read elsewhere, too: export without an output of scores"
                );
                hindrances.insert(id, reason);
            }
        }
        Ok(match hindrances.is_empty() {
            true => Ok(main),
            false => Err(hindrances),
        })
    }
}

/// The operator set that raised attentions need.
pub fn operator_set() -> OperatorSetIdProto {
    OperatorSetIdProto {
        domain: Some(DOMAIN.to_owned()),
        version: Some(1),
    }
}

/// Why the attention of `view` cannot be raised; `None` if it can be.
pub fn hindrance(view: &SiteView) -> Option<String> {
    raised(view, &view.site().name, &mut HashMap::new()).err()
}

/// The patch that raises the attention of `view` under `name`, or why it cannot be raised, and what the user can do.
fn raised(
    view: &SiteView,
    name: &str,
    shared: &mut HashMap<String, String>,
) -> Result<Patch, String> {
    let (site, graph) = (view.site(), view.graph);
    let caches = check(view)?;
    let scoring = view
        .scoring()
        .ok_or("other operators than a scale, a softcap and a mask are between its products")?;
    let pseudo = NodeProto {
        metadata_props: graph
            .node(site.score)
            .map(|n| n.metadata_props.clone())
            .unwrap_or_default(),
        ..node("GroupQueryAttention", &format!("{name}/raised"), &[], &[])
    };
    let mut known = shared.clone();
    let mut s = Primitives::new(graph, view.facts, &pseudo, &mut known);
    let lengths = Lengths::of(&mut s, view);
    let bias = bias(&mut s, view, &lengths)?;
    let (query, factor) = without_factor(view, &site.query);
    let [q, k, v] = [
        (query, "q", site.heads * site.key.size),
        (&*site.key.new, "k", site.kv_heads * site.key.size),
        (&*site.value.new, "v", site.kv_heads * site.value.size),
    ]
    .map(|(heads, part, width)| packed(&mut s, heads, part, width));
    let [past_keys, past_values] = caches.map(|cache| cache.appended_to().unwrap_or_default());
    let inputs = [
        &*q,
        &k,
        &v,
        past_keys,
        past_values,
        &lengths.seqlens,
        &lengths.total_int32,
        "",
        "",
        "",
        &bias,
    ];
    let out = s.free(format!("{name}/raised/out_BTx"));
    let presents = caches.map(|cache| cache.joined.as_str());
    let softcap = scoring.softcap.unwrap_or(0.0);
    let scale = scoring.scale * site.key.scale * factor;
    if scale as f32 == 0.0 {
        return Err(
            "its scores are multiplied by 0, which the operator takes for its default scale"
                .to_owned(),
        );
    }
    let operator = node(
        "GroupQueryAttention",
        &format!("{name}/GroupQueryAttention"),
        &inputs,
        &[&out, presents[0], presents[1]],
    );
    let operator = NodeProto {
        domain: Some(DOMAIN.to_owned()),
        ..operator
    };
    s.keep(
        operator
            .with_int("num_heads", site.heads as i64)
            .with_int("kv_num_heads", site.kv_heads as i64)
            .with_float("scale", scale as f32)
            .with_float("softcap", softcap as f32)
            .with_int("do_rotary", 0),
    );
    let by_head = s.vector(&[0, 0, site.heads as i64, site.value.size as i64]);
    let rows = s.op("Reshape", "out_BTHd", &[&out, &by_head]);
    let output = graph.node(site.output).and_then(|n| n.output.first());
    let output = output.cloned().unwrap_or_default();
    s.named("Transpose", "out_BHTd", &[&rows], &[&output], |n| {
        n.with_ints("perm", &[0, 2, 1, 3])
    });
    let mut patch = Patch::default();
    for (id, nodes) in lengths.readers(&mut s, view)? {
        patch.replaced.insert(id, nodes);
    }
    let (nodes, initializers, made) = s.finish();
    for cache in caches {
        patch.replaced.insert(cache.append, Vec::new());
    }
    patch.replaced.insert(site.output, nodes);
    patch.add_initializers(initializers);
    shared.extend(made);
    Ok(patch)
}

/// The other operand of the `Mul` by one constant number that makes `query`, and this number; `query` and 1 if it is made
/// otherwise.
fn without_factor<'v>(view: &SiteView<'v>, query: &'v str) -> (&'v str, f64) {
    let product = || {
        let (_, node) = view.graph.producer(query)?;
        let [a, b] = node.input.as_slice() else {
            return None;
        };
        let number = |value: &str| match view.facts.floats(value)? {
            [number] if *number > 0.0 => Some(*number),
            _ => None,
        };
        let mut ways = [(a, b), (b, a)].into_iter().filter(|_| is_op(node, "Mul"));
        ways.find_map(|(rows, factor)| Some((rows.as_str(), number(factor)?)))
    };
    product().unwrap_or((query, 1.0))
}

/// [B, heads, T, size] as [B, T, heads*size].
fn packed(s: &mut Primitives, heads: &str, part: &str, width: usize) -> String {
    let rows = s.with("Transpose", &format!("{part}_BTHd"), &[heads], |n| {
        n.with_ints("perm", &[0, 2, 1, 3])
    });
    let width = s.vector(&[0, 0, width as i64]);
    s.op("Reshape", &format!("{part}_BTx"), &[&rows, &width])
}

/// The caches of keys and of values, if the operator can compute the attention of `view`.
fn check<'v>(view: &SiteView<'v>) -> Result<[&'v Cache; 2], String> {
    let site: &'v Site = view.site();
    let refused = |what: &str| Err(what.to_owned());
    if let Some(within) = &site.within {
        return Err(format!(
            "it stands in {within}: export the decoder with a past by itself, without merging"
        ));
    }
    if view.readers().count() != 1 || site.shares.is_some() {
        return refused("other layers read its cache");
    }
    let [Some(keys), Some(values)] = [&site.key, &site.value].map(|side| side.cache.as_ref())
    else {
        return refused("it has no cache: export the model with one");
    };
    let caches = [keys, values];
    if caches.iter().any(|c| c.past.is_none()) {
        return refused("it has no past: export the model with one");
    }
    if caches
        .iter()
        .any(|c| c.kind == CacheKind::Static || c.packed.is_some())
    {
        return refused("its cache is a static buffer, or has the heads on one axis");
    }
    let (size, values) = (site.key.size, site.value.size);
    if size != values || size % HEAD_STEP != 0 {
        return Err(format!(
            "its heads have {size} and {values} numbers, and the operator needs one multiple of {HEAD_STEP}"
        ));
    }
    if site.value.scale != 1.0 {
        return refused("its values are scaled after they are cached");
    }
    let float = [DataType::Float as i32, DataType::Float16 as i32];
    let typed = |value: &str| view.facts.elem_type(value);
    let own = [&site.query, &site.key.new, &site.value.new].map(|v| typed(v));
    let out = view
        .graph
        .node(site.output)
        .and_then(|n| typed(n.output.first()?));
    let made = [
        site.elem_type,
        site.key.product_type,
        site.value.product_type,
    ];
    let alike = own.iter().chain([&out]).all(|t| *t == Some(site.elem_type))
        && made.iter().all(|t| *t == site.elem_type);
    if !alike || !float.contains(&site.elem_type) {
        return refused("its queries, keys and values are not all of fp32, or all of fp16");
    }
    Ok(caches)
}
