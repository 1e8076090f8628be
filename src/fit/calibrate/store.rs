//! The statistics file: the sums, with the identities of model and text.

use std::collections::BTreeMap;
use std::path::Path;

use gqa2mla_passes::analysis::identity::SiteId;
use gqa2mla_passes::factor::Statistics;
use gqa2mla_passes::factor::position_free::PositionFree;
use gqa2mla_passes::factor::rope::Rope;
use gqa2mla_passes::factor::sample::Sample;
use ndarray::Array2;

use crate::files::tensors::{Arrays, ArraysError};
use crate::fit::statistics::ModelStatistics;

/// Kind and version of the file.
const KIND: &str = "gqa2mla statistics 4";

/// Writes `statistics` to `path` atomically.
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
        if let Some(sum) = &sums.unrotated_sum {
            file.put(&name("unrotated_sum"), &sum.view());
        }
        if let Some(cross) = &sums.unrotated_value {
            file.put(&name("unrotated_value"), &cross.view());
        }
        file.put(&name("value_sum"), &sums.value_sum.view());
        file.put(&name("value_square"), &sums.value_square.view());
        file.put(&name("received"), &sums.received.view());
        file.put(&name("received_value"), &sums.received_value.view());
        file.put(&name("squared"), &sums.squared.view());
        file.put(&name("squared_value"), &sums.squared_value.view());
        file.put(&name("squared_square"), &sums.squared_square.view());
        file.put(&name("sample"), &sums.sample.to_array().view());
        if let Some(free) = &sums.position_free {
            put_position_free(&mut file, free, &name("position_free"));
        }
        for (group, square) in sums.query_square.iter().enumerate() {
            file.put(&name(&format!("query_square/{group}")), &square.view());
        }
    }
    file.save(KIND, path)
}

fn put_position_free(file: &mut Arrays, sums: &PositionFree, name: &str) {
    let pairs = sums.rope.pairs();
    let pairs = Array2::from_shape_fn((pairs.len(), 2), |(l, side)| {
        let pair = pairs.get(l).copied().unwrap_or_default();
        (if side == 0 { pair.0 } else { pair.1 }) as f64
    });
    file.put(&format!("{name}/pairs"), &pairs.view());
    let frequencies = ndarray::aview1(sums.rope.frequencies());
    file.put(&format!("{name}/frequencies"), &frequencies);
    file.put(&format!("{name}/key_sum"), &sums.key_sum.view());
    file.put(&format!("{name}/key_square"), &sums.key_square.view());
    for (group, square) in sums.query_square.iter().enumerate() {
        file.put(&format!("{name}/query_square/{group}"), &square.view());
    }
}

/// Reads a file that [`save`] has written.
///
/// # Errors
/// [`ArraysError`] with the file.
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
    let query_square = listed(file, &name("query_square"));
    let tokens: ndarray::Array1<f64> = file.get(&name("tokens"))?;
    let key_sum: ndarray::Array1<f64> = file.get(&name("key_sum"))?;
    let sample: Array2<f64> = file.get(&name("sample"))?;
    let sample = Sample::from_array(&sample.view(), key_sum.len());
    let sums = Statistics {
        tokens: tokens.sum(),
        key_sum,
        key_square: file.get(&name("key_square"))?,
        unrotated_square: file.get(&name("unrotated_square")).ok(),
        unrotated_sum: file.get(&name("unrotated_sum")).ok(),
        unrotated_value: file.get(&name("unrotated_value")).ok(),
        value_sum: file.get(&name("value_sum"))?,
        value_square: file.get(&name("value_square"))?,
        position_free: position_free(file, &name("position_free"))?,
        query_square,
        received: file.get(&name("received"))?,
        received_value: file.get(&name("received_value"))?,
        squared: file.get(&name("squared"))?,
        squared_value: file.get(&name("squared_value"))?,
        squared_square: file.get(&name("squared_square"))?,
        sample,
    };
    if sums.is_consistent() && sums.is_finite() {
        Ok(sums)
    } else {
        Err(format!(
            "the sums of layer {position} contradict each other"
        ))
    }
}

/// The matrices `name`/0, `name`/1 and so on.
fn listed(file: &Arrays, name: &str) -> Vec<Array2<f64>> {
    let numbers = 0..;
    let squares = numbers.map_while(|group: usize| file.get(&format!("{name}/{group}")).ok());
    squares.collect()
}

/// The sums that [`put_position_free`] has written; `None` if there are none.
fn position_free(file: &Arrays, name: &str) -> Result<Option<PositionFree>, String> {
    let part = |part: &str| format!("{name}/{part}");
    let Ok(frequencies) = file.get::<ndarray::Ix1>(&part("frequencies")) else {
        return Ok(None);
    };
    let pairs: Array2<f64> = file.get(&part("pairs"))?;
    let columns = pairs.columns().into_iter().map(|column| column.to_vec());
    let pairs = match columns.collect::<Vec<_>>().as_slice() {
        [first, second] => {
            let both = first.iter().zip(second);
            both.map(|(&x, &y)| (x as usize, y as usize)).collect()
        }
        _ => Vec::new(),
    };
    let query_square = listed(file, &part("query_square"));
    let size = query_square.first().map_or(0, Array2::nrows);
    let rope = Rope::new(size, pairs, frequencies.to_vec());
    Ok(Some(PositionFree {
        rope: rope.ok_or_else(|| format!("{name} holds no rotation"))?,
        key_sum: file.get(&part("key_sum"))?,
        key_square: file.get(&part("key_square"))?,
        query_square,
    }))
}
