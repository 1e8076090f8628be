//! Replacement of `Shape` nodes that read a value which a form removes or whose shape it changes.

use crate::forms::builder::Builder;
use crate::graph::build::node;
use crate::recognize::shape_reader::{Element, ShapeReader};

impl Builder<'_> {
    /// Replaces all `Shape` nodes that read the attention's caches or values between these and the products. For forms
    /// whose products read the latent caches.
    pub fn answer_shapes(&mut self) {
        let site = self.site;
        let pasts = self.past_readers();
        let readers = site.key.shape_readers.iter();
        let others = readers.chain(&site.value.shape_readers);
        let others = others.filter(|other| pasts.iter().all(|past| past.node != other.node));
        for reader in pasts.iter().chain(others) {
            self.shape(reader);
        }
    }

    /// Removes the nodes between caches and products (repeat_kv), which do not fit latents. For forms that replace both
    /// products.
    pub fn drop_paths(&mut self) {
        let site = self.site;
        for side in [&site.key, &site.value] {
            for value in side.path.iter().filter(|v| **v != side.source) {
                if let Some((id, _)) = self.graph.producer(value) {
                    self.place(id, Vec::new());
                }
            }
        }
    }

    /// Replaces `reader` by nodes that compute the same shape from its anchor and constants.
    pub fn shape(&mut self, reader: &ShapeReader) {
        let Some(old) = self.graph.node(reader.node) else {
            return;
        };
        let output = old.output.first().map_or("", String::as_str);
        let sizes = self.name(output);
        let mut nodes = Vec::new();
        let mut parts = Vec::new();
        if reader
            .elements
            .iter()
            .any(|e| matches!(e, Element::Axis(_)))
        {
            nodes.push(node("Shape", &sizes, &[&reader.anchor], &[&sizes]));
        }
        for (position, element) in reader.elements.iter().enumerate() {
            match element {
                Element::Fixed(size) => parts.push(self.vector(&[*size])),
                Element::Axis(axis) => {
                    let index = self.vector(&[*axis]);
                    let part = format!("{sizes}/{position}");
                    nodes.push(
                        node("Gather", &part, &[&sizes, &index], &[&part]).with_int("axis", 0),
                    );
                    let past = match axis {
                        2 => self.without_room(&reader.anchor, &part, &format!("{part}/past")),
                        _ => (None, part),
                    };
                    nodes.extend(past.0);
                    parts.push(past.1);
                }
            }
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        nodes.push(node("Concat", old.name(), &parts, &[output]).with_int("axis", 0));
        self.place(reader.node, nodes);
    }
}
