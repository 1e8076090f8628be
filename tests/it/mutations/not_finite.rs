//! Whether a mutated original caches numbers that are not finite. In a latent layer these reach all heads, which docs/method.md
//! names among the limits; an original that replaces undefined probabilities by zeros keeps its logits finite.

use std::path::Path;

use gqa2mla::runtime::tensor::Tensor;
use gqa2mla::runtime::{RuntimeError, Session};
use gqa2mla::validate::interface::Interface;

use super::session;

/// A session that looks at the caches it returns.
pub struct Watched {
    inner: Box<dyn Session>,
    presents: Vec<String>,
    /// Whether a cached number was not finite.
    pub saw_any: bool,
}

impl Watched {
    /// A session of the model at `path`, whose interface is `ports`.
    pub fn open(path: &Path, ports: &Interface) -> Result<Self, String> {
        Ok(Self {
            inner: session(path)?,
            presents: ports.caches.iter().map(|c| c.present.clone()).collect(),
            saw_any: false,
        })
    }
}

impl Session for Watched {
    fn run(&mut self, inputs: &[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, RuntimeError> {
        let outputs = self.inner.run(inputs)?;
        let caches = outputs
            .iter()
            .filter(|(name, _)| self.presents.contains(name));
        for (_, cache) in caches {
            self.saw_any |= cache.clone().to_f32().iter().any(|x| !x.is_finite());
        }
        Ok(outputs)
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}
