//! How the new rows of a step are appended to the cache, and the metadata entry that records it in the model.

use std::collections::BTreeSet;

use crate::onnx::{ModelProto, StringStringEntryProto};

/// How the new rows of a step are appended to the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Join {
    /// The past input has P rows, and the graph returns a present of P + T rows, as exporters write it.
    #[default]
    Append,
    /// The past input has P + T rows; the last T of them are space for the new rows. Past and present have the same
    /// shape and can be bound to one buffer, so that no step copies the cache.
    InPlace,
}

impl Join {
    /// The name in options and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::InPlace => "inplace",
        }
    }
}

/// Metadata key of models whose caches are written in place. The value lists their past inputs, one per line.
pub const IN_PLACE: &str = "gqa2mla.in_place";

/// Adds `pasts` to the past inputs that the metadata of `model` lists as written in place.
pub fn note_in_place<'n>(model: &mut ModelProto, pasts: impl IntoIterator<Item = &'n str>) {
    let mut all: BTreeSet<String> = in_place(model).map(str::to_owned).collect();
    all.extend(pasts.into_iter().map(str::to_owned));
    let lines: Vec<String> = all.into_iter().collect();
    let note = StringStringEntryProto {
        key: Some(IN_PLACE.to_owned()),
        value: Some(lines.join("\n")),
    };
    model.metadata_props.retain(|p| p.key() != IN_PLACE);
    model.metadata_props.push(note);
}

/// The past inputs that the metadata of `model` lists as written in place.
pub fn in_place(model: &ModelProto) -> impl Iterator<Item = &str> {
    let mut properties = model.metadata_props.iter();
    let note = properties.find(|p| p.key() == IN_PLACE);
    note.into_iter().flat_map(|p| p.value().lines())
}

#[cfg(test)]
mod tests {
    use super::{in_place, note_in_place};
    use crate::onnx::ModelProto;

    #[test]
    fn a_second_rewrite_adds_to_what_is_noted() {
        let mut model = ModelProto::default();
        assert_eq!(in_place(&model).count(), 0);
        note_in_place(&mut model, ["past.1", "past.0"]);
        note_in_place(&mut model, ["past.2"]);
        let noted: Vec<&str> = in_place(&model).collect();
        assert_eq!(noted, ["past.0", "past.1", "past.2"]);
        assert_eq!(model.metadata_props.len(), 1);
    }
}
