//! transformers.js reads the shapes of caches from the session; versions up to 3 compute them from the configuration,
//! as Optimum does.

use crate::serving::config::{Edit, read};
use crate::serving::error::ServingError;
use crate::serving::latent::Latent;
use crate::serving::optimum;
use crate::serving::stack::Stack;

pub fn edit(text: &str, latent: &Latent) -> Result<(String, Vec<Edit>), ServingError> {
    let stack = Stack::TransformersJs;
    let mut config = read(stack.file(), text)?;
    // Different ranks, and model types whose shape the configuration cannot express, work only with shapes from the
    // session.
    let said = latent
        .width(stack)
        .and_then(|width| optimum::shape(&mut config, stack, width));
    if said.is_err() {
        config = read(stack.file(), text)?;
    }
    // It fetches the number of data files that the configuration declares, and there is one now.
    let told = ["transformers.js_config", "use_external_data_format"];
    let [section, key] = told;
    for path in [&told[..], &[section, key, latent.file.as_str()]] {
        if latent.data_files > 1 && config.number(path).is_some_and(|chunks| chunks > 1) {
            config.set(path, "1");
        }
    }
    Ok(config.finish())
}
