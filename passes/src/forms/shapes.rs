//! Shapes that are asked of values which a form removes or narrows: they are put together from what stays.

use crate::forms::builder::Builder;
use crate::graph::build::node;
use crate::recognize::shape_reader::{Element, ShapeReader};

impl Builder<'_> {
    /// The shape that `reader` asks for, put together from what stays.
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
                    parts.push(part);
                }
            }
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        nodes.push(node("Concat", old.name(), &parts, &[output]).with_int("axis", 0));
        self.place(reader.node, nodes);
    }
}
