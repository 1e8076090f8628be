//! transformers.js reads the shapes of caches from the session; versions before 4.2 compute them from the configuration,
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
        .shape(stack)
        .and_then(|shape| optimum::shape(&mut config, stack, shape));
    if said.is_err() {
        config = read(stack.file(), text)?;
    }
    // transformers.js fetches as many data files as the configuration declares, for all models or for each model by its
    // name.
    let (before, after) = latent.data_files;
    if before != after {
        let (section, key) = ("transformers.js_config", "use_external_data_format");
        let of_all = config.has(&[section, key]) && !config.is_object(&[section, key]);
        let path: &[&str] = match of_all {
            true => &[section, key],
            false => &[section, key, latent.file.as_str()],
        };
        config.set(path, &after.to_string());
    }
    Ok(config.finish())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::edit;
    use crate::files::load::load;
    use crate::serving::latent::Latent;

    #[test]
    fn the_configuration_tells_how_many_data_files_there_are() {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/optimum-llama");
        let model = load(&fixture).unwrap();
        let mut latent = Latent::of(&model, &model, false).unwrap();
        let own = std::fs::read_to_string(fixture.join("config.json")).unwrap();
        let with = |told: &str| {
            let section = format!("{{ \"transformers.js_config\": {{ {told} }},");
            own.replacen('{', &section, 1)
        };
        let key = "transformers.js_config.use_external_data_format";
        let of_file = format!("{key}.model.onnx");
        let by_file = "\"use_external_data_format\": { \"model.onnx\": 2 }";
        for (text, files, edited, old) in [
            (own.clone(), (0, 1), of_file.as_str(), None),
            (
                with("\"use_external_data_format\": true"),
                (1, 3),
                key,
                Some("true"),
            ),
            (with(by_file), (2, 1), of_file.as_str(), Some("2")),
        ] {
            latent.data_files = files;
            let (_, edits) = edit(&text, &latent).unwrap();
            let made = edits.iter().find(|e| e.key == edited).unwrap();
            assert_eq!(made.old.as_deref(), old, "{edited}");
            assert_eq!(made.new, files.1.to_string());
        }
        latent.data_files = (3, 3);
        let (_, edits) = edit(&with(by_file), &latent).unwrap();
        assert!(edits.iter().all(|e| !e.key.starts_with(key)));
    }
}
