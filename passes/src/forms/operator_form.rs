//! Forms in which `com.microsoft.GroupQueryAttention` computes the output and the presents of every step.

use crate::forms::Form;
use crate::forms::builder::Builder;
use crate::graph::build::node;
use crate::onnx::NodeProto;

/// A form whose operator makes the presents.
pub trait OperatorForm: Form {
    /// The name of the form with an exact prompt.
    fn with_prompt(&self) -> &'static str;

    /// Changes the declared types and shapes of the caches.
    fn change_caches(&self, builder: &mut Builder);

    /// Every step but the prompt, which computes the output of the value product [B, H, T, dv], called `output`, and
    /// `presents`. `old` is the exporter's operator.
    fn step(
        &self,
        builder: &mut Builder,
        old: &NodeProto,
        presents: &[String; 2],
        output: &str,
    ) -> Step;
}

/// A step with a form's operator.
pub struct Step {
    /// Nodes that the prompt needs, too.
    pub shared: Vec<NodeProto>,
    /// The rows [B, T, r] of keys and of values for the caches; `None`: the heads, as the exporter's operator computes them.
    pub rows: Option<[String; 2]>,
    /// The other nodes.
    pub nodes: Vec<NodeProto>,
}

impl Builder<'_> {
    /// The nodes of `output` [B, H, T, dv] from the operator's output `packed` [B, T, H * dv], with the value `part` between.
    pub fn by_head(&mut self, part: &str, packed: &str, output: &str) -> [NodeProto; 2] {
        let by_head = self.vector(&[0, 0, self.site.heads as i64, self.site.value.size as i64]);
        let turned = node("Transpose", output, &[&self.name(part)], &[output]);
        [
            self.unary("Reshape", part, &[packed, &by_head]),
            turned.with_ints("perm", &[0, 2, 1, 3]),
        ]
    }
}
