//! Statistics as a file: the sums, and beside them the model and the text they belong to.

use std::collections::BTreeMap;
use std::path::Path;

use gqa2mla_passes::analysis::identity::SiteId;
use gqa2mla_passes::factor::Statistics;

use crate::files::tensors::{Arrays, ArraysError};
use crate::fit::calibrate::ModelStatistics;

/// What the file is.
const KIND: &str = "gqa2mla statistics 1";

/// Writes `statistics`, complete or not at all.
///
/// # Errors
/// [`ArraysError::Io`].
pub fn save(statistics: &ModelStatistics, path: &Path) -> Result<(), ArraysError> {
    let mut file = Arrays::default();
    let ids: Vec<&str> = statistics.layers.keys().map(SiteId::as_str).collect();
    let text = [
        ("model", statistics.model.clone()),
        ("text", statistics.text.clone()),
        ("sequences", statistics.sequences.to_string()),
        ("length", statistics.length.to_string()),
        ("layers", serde_json::json!(ids).to_string()),
    ];
    file.text
        .extend(text.map(|(key, value)| (key.to_owned(), value)));
    for (number, sums) in statistics.layers.values().enumerate() {
        let name = |part: &str| format!("{number}/{part}");
        let tokens = ndarray::arr1(&[sums.tokens]);
        file.put(&name("tokens"), &tokens.view());
        file.put(&name("key_sum"), &sums.key_sum.view());
        file.put(&name("key_square"), &sums.key_square.view());
        if let Some(square) = &sums.unrotated_square {
            file.put(&name("unrotated_square"), &square.view());
        }
        if let Some(cross) = &sums.unrotated_value {
            file.put(&name("unrotated_value"), &cross.view());
        }
        file.put(&name("value_square"), &sums.value_square.view());
        file.put(&name("received"), &sums.received.view());
        file.put(&name("received_value"), &sums.received_value.view());
        file.put(&name("squared"), &sums.squared.view());
        file.put(&name("squared_value"), &sums.squared_value.view());
        file.put(&name("squared_square"), &sums.squared_square.view());
        for (group, square) in sums.query_square.iter().enumerate() {
            file.put(&name(&format!("query_square/{group}")), &square.view());
        }
    }
    file.save(KIND, path)
}

/// Reads what [`save`] has written.
///
/// # Errors
/// [`ArraysError`] names the file.
pub fn load(path: &Path) -> Result<ModelStatistics, ArraysError> {
    let file = Arrays::load(KIND, path)?;
    parse(&file).map_err(|detail| ArraysError::Format {
        path: path.display().to_string(),
        kind: KIND,
        detail,
    })
}

fn parse(file: &Arrays) -> Result<ModelStatistics, String> {
    let number = |key: &str| file.entry(key)?.parse::<usize>().map_err(|e| e.to_string());
    let ids: Vec<String> =
        serde_json::from_str(file.entry("layers")?).map_err(|e| e.to_string())?;
    let mut layers = BTreeMap::new();
    for (position, id) in ids.into_iter().enumerate() {
        layers.insert(SiteId::new(id), layer(file, position)?);
    }
    Ok(ModelStatistics {
        model: file.entry("model")?.to_owned(),
        text: file.entry("text")?.to_owned(),
        sequences: number("sequences")?,
        length: number("length")?,
        layers,
    })
}

fn layer(file: &Arrays, position: usize) -> Result<Statistics, String> {
    let name = |part: &str| format!("{position}/{part}");
    let mut query_square = Vec::new();
    while let Ok(square) = file.get(&name(&format!("query_square/{}", query_square.len()))) {
        query_square.push(square);
    }
    let tokens: ndarray::Array1<f64> = file.get(&name("tokens"))?;
    let sums = Statistics {
        tokens: tokens.sum(),
        key_sum: file.get(&name("key_sum"))?,
        key_square: file.get(&name("key_square"))?,
        unrotated_square: file.get(&name("unrotated_square")).ok(),
        unrotated_value: file.get(&name("unrotated_value")).ok(),
        value_square: file.get(&name("value_square"))?,
        query_square,
        received: file.get(&name("received"))?,
        received_value: file.get(&name("received_value"))?,
        squared: file.get(&name("squared"))?,
        squared_value: file.get(&name("squared_value"))?,
        squared_square: file.get(&name("squared_square"))?,
    };
    if sums.is_consistent() && sums.is_finite() {
        Ok(sums)
    } else {
        Err(format!(
            "the sums of layer {position} contradict each other"
        ))
    }
}
